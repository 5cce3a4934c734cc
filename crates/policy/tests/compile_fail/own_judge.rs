use offshoot_policy::judge::Judge;

#[derive(Debug)]
struct PermitsAnything;

impl Judge for PermitsAnything {}

fn main() {}
