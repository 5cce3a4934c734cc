use offshoot_policy::{Authorized, Grant};

fn forge(grant: Grant) -> Authorized<u32> {
    Authorized { inner: 7, grant }
}

fn main() {}
