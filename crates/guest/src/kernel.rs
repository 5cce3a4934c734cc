//! What the kernel below the agent does itself, and what it leaves to the host or to the agent.

/// Which kernel the agent is PID 1 of. Told by whoever starts it, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Linux, on a machine of its own: clock, random pool, disks and cgroups are its own affair.
    Linux,
    /// gVisor's, which speaks Linux's system calls in user space. Its clock and its randomness are the host's, its cgroups are
    /// of the first generation and neither freeze nor kill, and it ends with its PID 1.
    Gvisor,
}

impl Kernel {
    /// Whether there is a clock that the agent may set.
    pub fn has_own_clock(self) -> bool {
        self == Self::Linux
    }

    /// Whether there is a random pool that the agent may feed. A copy of one that is not fed repeats it.
    pub fn has_own_random_pool(self) -> bool {
        self == Self::Linux
    }
}
