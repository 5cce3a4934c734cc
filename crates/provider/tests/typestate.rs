//! Moves a VM cannot make do not compile.

#[test]
fn illegal_moves_do_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
