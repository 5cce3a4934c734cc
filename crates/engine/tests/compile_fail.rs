//! Programs that must not compile: whatever policy has not permitted cannot be carried out.

#[test]
fn no_engine_method_takes_a_bare_command() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
