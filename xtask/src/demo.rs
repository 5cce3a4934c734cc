//! `cargo xtask demo`: from nothing to agent code running in real micro-VMs, and in gVisor's sandboxes beside them.

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

/// What each provider gives to programs that only compute.
const LOOP: &str = "import time; t = time.perf_counter(); n = sum(i * i % 7 for i in range(200_000)); \
    print(n, 'in', round((time.perf_counter() - t) * 1e3), 'ms')";

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
    let providers = providers(&built)?;
    for (language, code) in JOBS {
        transcript.say("");
        transcript.say(language);
        for provider in &providers {
            let ran = run_in_vm(&built, &args.image, provider, language, code)?;
            if !ran.stdout.contains("on kernel") || ran.stdout.contains(host.trim()) {
                bail!("{language} did not report a guest kernel: {}", ran.stdout);
            }
            transcript.say(&format!("  {provider:<7} {:<18} {}", ran.isolation, ran.stdout));
            transcript.say(&format!("          {}", ran.timings));
        }
    }
    transcript.say("");
    transcript.say("the same loop of Python, as it times itself");
    for provider in &providers {
        let ran = run_in_vm(&built, &args.image, provider, "python", LOOP)?;
        transcript.say(&format!("  {provider:<7} {:<18} {}", ran.isolation, ran.stdout));
    }
    transcript.say("");
    transcript.say("Now yours: target/release/offshoot run -c 'print(6 * 7)'");
    if let Some(file) = &args.picture {
        fs::write(file, picture::terminal(&transcript.0))
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// What VMs can be made with here: gVisor too, where `doctor` has seen it work.
fn providers(built: &artifacts::Built) -> Result<Vec<&'static str>> {
    let said =
        Command::new(&built.offshoot).args(["doctor", "--json"]).output().context("run `offshoot doctor`")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let checks: Value = serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))?;
    let list =
        checks.as_array().or_else(|| checks["checks"].as_array()).context("`doctor` lists no checks")?;
    let gvisor = list.iter().any(|check| check["name"] == "gvisor" && check["verdict"] == "ok");
    Ok(if gvisor { vec!["qemu", "gvisor"] } else { vec!["qemu"] })
}

struct Ran {
    stdout: String,
    isolation: String,
    timings: String,
}

/// In a fresh VM, which is removed afterwards.
fn run_in_vm(
    built: &artifacts::Built,
    image: &str,
    provider: &str,
    language: &str,
    code: &str,
) -> Result<Ran> {
    let began = Instant::now();
    let mut command = Command::new(&built.offshoot);
    command.args(["run", "--json", "--image", image, "--provider", provider, "--lang", language, "-c", code]);
    let text = process::output(&mut command)?;
    let took = began.elapsed().as_secs_f64();
    let answer: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
    let field = |name: &str| answer[name].as_str().unwrap_or("?").trim_end().to_owned();
    let ms = |name: &str| answer["timings"][name].as_f64().map_or("?".into(), |v| format!("{v:.0} ms"));
    let timings = format!(
        "create {}, boot {}, run {}; {took:.2} s in all, clean-up included",
        ms("create_ms"),
        ms("boot_ms"),
        ms("exec_ms")
    );
    Ok(Ran { stdout: field("stdout"), isolation: field("isolation"), timings })
}

fn step(what: &str) {
    eprintln!("==> {what}");
}
