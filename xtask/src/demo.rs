//! `cargo xtask demo`: from nothing to agent code running in real micro-VMs.

use crate::{artifacts, gvisor, packages, picture, process};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{fs, path::PathBuf, process::Command, time::Instant};

#[derive(clap::Args)]
pub struct Args {
    /// Image to run.
    #[arg(long, default_value = "base")]
    image: String,
    /// Also draw what was printed as a terminal picture (SVG) into this file.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

/// Prints, and remembers what was printed for the picture.
#[derive(Default)]
struct Transcript(Vec<String>);

impl Transcript {
    fn say(&mut self, text: &str) {
        println!("{text}");
        self.0.extend(text.lines().map(str::to_owned));
        if text.is_empty() {
            self.0.push(String::new());
        }
    }
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
    gvisor::offer();
    step("offshoot (release build, guest agent inside)");
    let built = artifacts::build()?;
    step(&format!("image `{}`", args.image));
    artifacts::image(&built, &args.image)?;
    eprintln!("set-up took {:.1} s\n", start.elapsed().as_secs_f64());

    let mut transcript = Transcript(vec!["$ cargo xtask demo".into()]);
    let host = process::output(Command::new("uname").arg("-r"))?;
    transcript.say(&format!("host kernel {}", host.trim()));
    for (language, code) in JOBS {
        job(&built, &args.image, language, code, host.trim(), &mut transcript)?;
    }
    transcript.say("");
    transcript.say("Now yours: target/release/offshoot run -c 'print(6 * 7)'");
    if let Some(file) = &args.picture {
        fs::write(file, picture::terminal(&transcript.0))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn job(
    built: &artifacts::Built,
    image: &str,
    language: &str,
    code: &str,
    host_kernel: &str,
    transcript: &mut Transcript,
) -> Result<()> {
    let began = Instant::now();
    let mut command = Command::new(&built.offshoot);
    command.args(["run", "--json", "--image", image, "--lang", language, "-c", code]);
    let text = process::output(&mut command)?;
    let took = began.elapsed().as_secs_f64();
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let field = |name: &str| answer[name].as_str().unwrap_or("?").to_owned();
    let stdout = field("stdout");
    if !stdout.contains("on kernel") || stdout.contains(host_kernel) {
        bail!("{language} did not report a guest kernel: {text}");
    }
    let ms = |name: &str| answer["timings"][name].as_f64().map_or("?".into(), |v| format!("{v:.0} ms"));
    transcript.say("");
    transcript.say(&format!("{language}: {}", stdout.trim_end()));
    transcript.say(&format!(
        "  where     a fresh VM on {}, isolation {}",
        field("provider"),
        field("isolation")
    ));
    transcript.say(&format!(
        "  how long  create {}, boot {}, run {}; {took:.2} s in all, clean-up included",
        ms("create_ms"),
        ms("boot_ms"),
        ms("exec_ms")
    ));
    Ok(())
}

fn step(what: &str) {
    eprintln!("==> {what}");
}
