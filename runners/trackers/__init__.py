"""Where records go besides files: one class per tracker, one file of `conf/tracker/` each."""
