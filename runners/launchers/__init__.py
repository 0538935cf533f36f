"""How the points of a sweep are started: one function per launcher, one file of `conf/launch/` each."""
