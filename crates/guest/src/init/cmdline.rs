//! The kernel command line, as far as the agent reads it.

use super::{InitError, Step};
use std::fs;

#[derive(Debug)]
pub struct CommandLine(String);

impl CommandLine {
    pub fn read() -> Result<Self, InitError> {
        fs::read_to_string("/proc/cmdline").map(Self).step("read", "/proc/cmdline")
    }

    /// The last value given for `key`, as the kernel itself decides.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .rfind(|(k, _)| *k == key)
            .map(|(_, v)| v)
    }

    /// Parameters of one module, `module.key=value`, in the form `finit_module` takes. Devices of virtio-mmio are
    /// announced this way when there is no ACPI.
    pub fn module_parameters(&self, module: &str) -> String {
        let canonical = |name: &str| name.replace('-', "_");
        let words = self.0.split_ascii_whitespace().filter_map(|word| {
            let (name, parameter) = word.split_once('.')?;
            (!name.contains('=') && canonical(name) == canonical(module)).then_some(parameter)
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::CommandLine;

    #[test]
    fn the_last_value_of_a_key_wins() {
        let line = CommandLine("quiet offshoot.hostname=a root=x offshoot.hostname=b\n".into());
        assert_eq!(line.value("offshoot.hostname"), Some("b"));
        assert_eq!(line.value("hostname"), None);
    }

    #[test]
    fn a_module_gets_its_own_parameters_only() {
        let line = CommandLine(
            "virtio_mmio.device=4K@0xd0000000:5 a=virtio_mmio.x quiet virtio-mmio.device=4K@0xd0001000:6 other.y=1"
                .into(),
        );
        assert_eq!(line.module_parameters("virtio_mmio"), "device=4K@0xd0000000:5 device=4K@0xd0001000:6");
        assert_eq!(line.module_parameters("erofs"), "");
    }
}
