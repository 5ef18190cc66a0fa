"""What is known of Odoo itself: its tables in every version, and what has to be true of their rows."""
