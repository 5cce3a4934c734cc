//! `cargo xtask demo`: from nothing to agent code running in real micro-VMs.

use crate::{artifacts, packages, run};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{process::Command, time::Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Image to run.
    #[arg(long, default_value = "base")]
    image: String,
}

/// Each prints the kernel it runs on, so that the output itself shows where it ran.
const JOBS: [(&str, &str); 3] = [
    (
        "python",
        "import platform, sys; print('Python', platform.python_version(), 'on kernel', platform.release())",
    ),
    ("javascript", "console.log('Node', process.version, 'on kernel', require('os').release())"),
    ("bash", "echo \"bash ${BASH_VERSION%%(*} on kernel $(uname -r)\""),
];

pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    step("system packages");
    packages::ensure()?;
    step("offshoot (release build, guest agent inside)");
    let built = artifacts::build()?;
    step(&format!("image `{}`", args.image));
    artifacts::image(&built, &args.image)?;
    eprintln!("set-up took {:.1} s\n", start.elapsed().as_secs_f64());

    let host = run::output(Command::new("uname").arg("-r"))?;
    println!("host kernel {}", host.trim());
    for (language, code) in JOBS {
        let began = Instant::now();
        let mut command = Command::new(&built.offshoot);
        command.args(["run", "--json", "--image", &args.image, "--lang", language, "-c", code]);
        let text = run::output(&mut command)?;
        let took = began.elapsed().as_secs_f64();
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        let field = |name: &str| answer[name].as_str().unwrap_or("?").to_owned();
        let stdout = field("stdout");
        if !stdout.contains("on kernel") || stdout.contains(host.trim()) {
            bail!("{language} did not report a guest kernel: {text}");
        }
        println!("\n{language}: {}", stdout.trim_end());
        println!("  where      fresh VM on {}, isolation {}", field("provider"), field("isolation"));
        let ms = |name: &str| answer["timings"][name].as_f64().map_or("?".into(), |v| format!("{v:.0} ms"));
        println!(
            "  how long   create {}, boot {}, run {}, all with clean-up {took:.2} s",
            ms("create_ms"),
            ms("boot_ms"),
            ms("exec_ms")
        );
    }
    println!("\nNow yours: {} run -c 'print(6 * 7)'", built.offshoot.display());
    Ok(())
}

fn step(what: &str) {
    eprintln!("==> {what}");
}
