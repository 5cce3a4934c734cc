//! The conformance suite on QEMU, with real VMs.

mod support;

mod real_vm_conformance {
    use crate::support::Real;
    offshoot_provider::conformance_tests!(Real::new());
}
