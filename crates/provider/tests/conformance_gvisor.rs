//! The conformance suite on gVisor, with real sandboxes. Where there is no `runsc` each test says so and is skipped.

mod support;

mod sandbox_conformance {
    use crate::support::Real;
    offshoot_provider::conformance_tests!(Real::sandbox());
}
