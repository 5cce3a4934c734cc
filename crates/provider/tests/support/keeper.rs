//! `keeper-for-tests keeper --spec FILE`: what `offshoot keeper --spec FILE` is, and nothing else.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["keeper", "--spec", path] => offshoot_provider::keeper::main(Path::new(path)),
        _ => {
            eprintln!("usage: keeper-for-tests keeper --spec FILE");
            ExitCode::from(2)
        }
    }
}
