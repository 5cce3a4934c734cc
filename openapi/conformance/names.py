"""What the run's VMs are called."""

#: Every name that its key may use begins so.
PREFIX = "probe-"
#: What is asked of guests goes to the first, what moves VMs to the second.
STEADY, MOVED = PREFIX + "steady", PREFIX + "moved"
