"""drservice: backup and disaster recovery that proves it can come back."""
