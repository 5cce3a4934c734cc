//! Isolation classes and providers. A request may set a minimum class; nothing ever falls below it.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What stands between guest code and the host, weakest first so that `>=` reads "at least as strong as".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IsolationClass {
    /// A kernel in user space that serves the guest's system calls (gVisor).
    UserSpaceKernel,
    /// A virtual machine whose CPU is emulated in software (QEMU with TCG).
    EmulatedVm,
    /// A virtual machine on hardware virtualisation (KVM).
    HardwareVm,
}

/// The program that runs a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    Qemu,
    Gvisor,
    Firecracker,
    CloudHypervisor,
    /// In memory, for tests: runs no guest code at all.
    Fake,
}

/// Which provider a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderChoice {
    /// The strongest class proven on this host.
    #[default]
    Auto,
    #[serde(untagged)]
    Named(ProviderKind),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown isolation class `{text}` (known: hardware-vm, emulated-vm, user-space-kernel)")]
pub struct UnknownIsolation {
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown provider `{text}` (known: auto, qemu, gvisor, firecracker, cloud-hypervisor)")]
pub struct UnknownProvider {
    pub text: String,
}

impl IsolationClass {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HardwareVm => "hardware-vm",
            Self::EmulatedVm => "emulated-vm",
            Self::UserSpaceKernel => "user-space-kernel",
        }
    }
}
impl fmt::Display for IsolationClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl FromStr for IsolationClass {
    type Err = UnknownIsolation;
    fn from_str(text: &str) -> Result<Self, UnknownIsolation> {
        [Self::HardwareVm, Self::EmulatedVm, Self::UserSpaceKernel]
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| UnknownIsolation { text: text.into() })
    }
}

impl ProviderKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Gvisor => "gvisor",
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Fake => "fake",
        }
    }
}
impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
impl FromStr for ProviderKind {
    type Err = UnknownProvider;
    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        [Self::Qemu, Self::Gvisor, Self::Firecracker, Self::CloudHypervisor, Self::Fake]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownProvider { text: text.into() })
    }
}
impl FromStr for ProviderChoice {
    type Err = UnknownProvider;
    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Named) }
    }
}
impl fmt::Display for ProviderChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Named(kind) => kind.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_ordered_by_strength_and_round_trip() {
        assert!(IsolationClass::HardwareVm > IsolationClass::EmulatedVm);
        assert!(IsolationClass::EmulatedVm > IsolationClass::UserSpaceKernel);
        for class in [IsolationClass::HardwareVm, IsolationClass::EmulatedVm, IsolationClass::UserSpaceKernel]
        {
            assert_eq!(class.as_str().parse(), Ok(class));
            assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{class}\""));
        }
        assert_eq!("auto".parse(), Ok(ProviderChoice::Auto));
        assert!("docker".parse::<ProviderChoice>().is_err());
        let json = serde_json::to_string(&ProviderChoice::Named(ProviderKind::Qemu)).unwrap();
        assert_eq!(json, "\"qemu\"");
        assert_eq!(serde_json::from_str::<ProviderChoice>("\"auto\"").unwrap(), ProviderChoice::Auto);
    }
}
