"""The report: what a run left in its result folder, as one page to look at."""
