//! The `offshoot` program. Everything is in the library, where it can be tested.

fn main() -> std::process::ExitCode {
    offshoot_cli::main(std::env::args_os())
}
