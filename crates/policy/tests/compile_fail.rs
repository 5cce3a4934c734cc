//! Authority cannot be made, copied or altered outside this crate: each of these programs must not compile.

#[test]
fn authority_is_minted_by_policy_alone() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
