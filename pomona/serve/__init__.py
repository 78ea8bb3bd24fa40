"""Floor 7: requests of many users, computed together: scheduling, slots, engines in a process of their own. No HTTP."""
