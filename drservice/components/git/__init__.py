"""Git clones as a component: bundles of their refs, what was not committed, and what they were."""
