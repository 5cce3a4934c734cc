//! Terminals and interruption, driven through a real pseudo-terminal.

use offshoot_testkit::{TestEnv, wait_for};
use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

/// A child on a pseudo-terminal, with everything it printed so far.
struct Terminal {
    child: Child,
    input: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn open(mut command: Command) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let controller =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("open a pty");
        grantpt(&controller).expect("grant the pty");
        unlockpt(&controller).expect("unlock the pty");
        let path = ptsname(&controller, Vec::new()).expect("the pty's name").into_string().expect("UTF-8");
        let user =
            || Stdio::from(File::options().read(true).write(true).open(&path).expect("open the terminal"));
        command.stdin(user()).stdout(user()).stderr(user());
        // A session of its own, so that the terminal is its controlling one and ^C becomes a signal.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg("--wait")
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .env("TERM", "xterm")
            .current_dir(command.get_current_dir().expect("a directory is set"))
            .stdin(user())
            .stdout(user())
            .stderr(user())
            .spawn()
            .expect("start the child on the terminal");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let reader: OwnedFd = controller.try_clone().expect("duplicate the pty");
        let collected = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut reader = File::from(reader);
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                collected.lock().expect("no panic while held").extend_from_slice(&buffer[..count]);
            }
        });
        Self { child, input: File::from(controller), screen }
    }

    fn type_in(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).expect("type into the terminal");
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().expect("no panic while held")).into_owned()
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        let deadline = Duration::from_secs(20);
        let what = format!("`{text}` on the terminal");
        let began = std::time::Instant::now();
        while !self.screen().contains(text) {
            assert!(
                began.elapsed() < deadline,
                "{what} not within {deadline:?}; it shows:\n{}",
                self.screen()
            );
            #[expect(clippy::disallowed_methods, reason = "the interval of a poll with a deadline")]
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        let mut status = None;
        wait_for("the child on the terminal to end", Duration::from_secs(20), || {
            status = self.child.try_wait().expect("wait for the child");
            status.is_some()
        });
        status.and_then(|s| s.code())
    }
}

#[test]
fn scenario_39_shell_is_a_real_terminal() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let mut terminal = Terminal::open(env.command(&["shell", "a"]));
    terminal.type_in("tty; echo size $(stty size); echo mar''ker é漢\n");
    terminal.shows("/dev/pts/");
    terminal.shows("marker é漢");
    // ^C reaches the guest's process, not us.
    // A ^C typed ahead of the command would discard it with the rest of the line discipline's input.
    terminal.type_in("echo slee''ping; sleep 1000\n");
    terminal.shows("sleeping");
    // Before the shell has made it the terminal's foreground process, ^C would reach the shell alone.
    wait_for("the sleep to have the terminal", Duration::from_secs(20), || {
        env.run(&["exec", "a", "--", "pgrep", "-x", "sleep"]).code == Some(0)
    });
    terminal.type_in("\x03");
    terminal.type_in("echo sta''tus $?\n");
    terminal.shows("status 130");
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.ends(), Some(5));
    env.finish();
}

#[test]
fn the_escape_leaves_the_shell_whatever_it_runs() {
    let env = TestEnv::new();
    env.run(&["create", "a", "--start"]).success();
    let mut terminal = Terminal::open(env.command(&["shell", "a"]));
    terminal.type_in("echo rea''dy; sleep 1000\n");
    terminal.shows("ready");
    for key in ["\r", "~", "."] {
        terminal.type_in(key);
    }
    terminal.ends();
    env.run(&["exec", "a", "--", "true"]).success();
    env.finish();
}

#[test]
fn ctrl_c_during_a_run_exits_130_and_leaves_nothing() {
    let env = TestEnv::new();
    let mut terminal = Terminal::open(env.command(&["run", "--", "sh", "-c", "echo be''gun; sleep 1000"]));
    terminal.shows("begun");
    terminal.type_in("\x03");
    assert_eq!(terminal.ends(), Some(130));
    wait_for("the VM of the run to be gone", Duration::from_secs(10), || {
        env.run(&["list", "--json"]).success().json()["vms"].as_array().is_some_and(Vec::is_empty)
    });
    // The same while it is still booting.
    let mut terminal = Terminal::open(env.command(&["run", "--", "true"]));
    wait_for("the VM to be starting", Duration::from_secs(10), || {
        env.run(&["list", "--json"]).success().json()["vms"][0]["state"] == "starting"
    });
    terminal.type_in("\x03");
    assert_eq!(terminal.ends(), Some(130));
    wait_for("the VM of the run to be gone", Duration::from_secs(10), || {
        env.run(&["list", "--json"]).success().json()["vms"].as_array().is_some_and(Vec::is_empty)
    });
    env.finish();
}

#[test]
fn destroy_asks_on_a_terminal() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success();
    let mut terminal = Terminal::open(env.command(&["destroy", "a"]));
    terminal.shows("a");
    terminal.type_in("n\n");
    assert_ne!(terminal.ends(), Some(0), "a refusal is not success");
    env.run(&["status", "a"]).success();
    let mut terminal = Terminal::open(env.command(&["destroy", "a"]));
    terminal.shows("a");
    terminal.type_in("y\n");
    assert_eq!(terminal.ends(), Some(0));
    env.run(&["status", "a"]).exits(3);
    env.finish();
}

#[test]
fn an_interactive_terminal_without_a_terminal_is_refused_at_once() {
    let env = TestEnv::new();
    env.run(&["create", "a"]).success();
    env.run(&["exec", "-i", "-t", "a", "--", "bash"]).exits(125).stderr_has("--tty");
    env.finish();
}
