//! How an agent is asked, without a channel, how fast it computes: `doctor` compares VMs and their host by that.

/// The agent's only argument; on a kernel's command line it stands behind `--`.
pub const ARGUMENT: &str = "compute";
/// What comes before the number of rounds in a millisecond, in a line of the agent's on standard error or the console.
pub const SAYS: &str = "computes, rounds in a millisecond: ";

/// The number, once the line that has it is complete.
pub fn rate(said: &[u8]) -> Option<u64> {
    let text = String::from_utf8_lossy(said);
    let (_, rest) = text.split_once(SAYS)?;
    let end = rest.find(['\r', '\n'])?;
    rest.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read_from_a_complete_line_among_others() {
        assert_eq!(rate(format!("Run /init\r\noffshoot-guest: {SAYS}120\r\nmore").as_bytes()), Some(120));
        assert_eq!(rate(format!("offshoot-guest: {SAYS}12").as_bytes()), None);
        assert_eq!(rate(b"offshoot-guest: fatal: no disk\n"), None);
        assert_eq!(rate(format!("{SAYS}-1\n").as_bytes()), None);
    }
}
