//! Two states compared, on real VMs: what the kernel's overlay makes of writing, removing and moving, and what runs.

use crate::branch::{shell, start};
use offshoot_testkit::TestEnv;

/// The lines of `offshoot diff`, without what stands in brackets behind a path.
#[track_caller]
fn lines(env: &TestEnv, arguments: &[&str]) -> Vec<String> {
    let told = env.run(&[&["diff"], arguments].concat()).success().stdout;
    told.lines().map(|line| line.split("  (").next().unwrap_or(line).to_owned()).collect()
}

#[test]
fn what_was_done_since_a_snapshot_is_told_exactly() {
    let env = TestEnv::new();
    start(&env, "a");
    // Some of it is in the image, some was written before the snapshot.
    shell(
        &env,
        "a",
        "mkdir -p /srv/old/deep /srv/kept && echo 1 >/srv/old/deep/file && echo aaaa >/srv/content \
         && echo grow >/srv/size && echo x >/srv/kept/x \
         && ln -s /etc /srv/link; setsid sleep 7001 >/dev/null 2>&1 & setsid sleep 7002 >/dev/null 2>&1 & \
         until [ \"$(pgrep -xc sleep)\" = 2 ]; do :; done",
    );
    env.run(&["snapshot", "a", "s"]).success();
    let same = env.run(&["diff", "a@s", "a", "--exit-code"]).success();
    assert_eq!(same.stdout, "", "nothing was done since: {same}");
    assert_eq!(lines(&env, &["a@s", "a@s"]), [""; 0]);

    shell(
        &env,
        "a",
        "echo bbbb >/srv/content; echo grown >/srv/size; chmod 600 /srv/kept/x; touch /srv/link; \
         rm -r /srv/old; mkdir -p /srv/new; echo y >\"/srv/new/a b\"; ln -sfn /usr /srv/link; \
         rm /etc/motd; cat /etc/issue >/tmp/i && cat /tmp/i >/etc/issue && rm /tmp/i; \
         rm -r /etc/alternatives && mkdir /etc/alternatives && echo 1 >/etc/alternatives/only; \
         mv /etc/skel /etc/moved; mkdir /mnt/m && mount -t tmpfs none /mnt/m && echo z >/mnt/m/hidden; \
         printf 'Package: made-up\\nStatus: install ok installed\\nArchitecture: all\\nVersion: 1.2-3\\n\\n' \
         >>/var/lib/dpkg/status; \
         pkill -xf 'sleep 7001'; setsid sleep 7003 >/dev/null 2>&1 & \
         until pgrep -xf 'sleep 7003' >/dev/null && ! pgrep -xf 'sleep 7001' >/dev/null; do :; done",
    );
    let told = lines(&env, &["a@s", "a", "--files"]);
    // What is in those directories depends on the image: all of it went.
    let (gone, mut rest): (Vec<String>, Vec<String>) =
        told.into_iter().partition(|line| line.starts_with("D /etc/alternatives/"));
    assert!(!gone.is_empty(), "an opaque directory hides what the image had in it");
    let (skel, others): (Vec<String>, Vec<String>) =
        rest.into_iter().partition(|line| line.contains("/etc/skel") || line.contains("/etc/moved"));
    rest = others;
    let moved = |from: &str| {
        let names = skel.iter().filter_map(|line| line.strip_prefix(from));
        names.map(|name| name.trim_end_matches('/').to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(moved("D /etc/skel"), moved("A /etc/moved"), "a moved directory has what it had");
    assert!(skel.len() >= 2, "{skel:?}");
    let expected = [
        "A /etc/alternatives/only",
        "D /etc/motd",
        "A /mnt/m/",
        "M /srv/content",
        "M /srv/kept/x",
        "M /srv/link",
        "A /srv/new/",
        "A /srv/new/a b",
        "D /srv/old/",
        "D /srv/old/deep/",
        "D /srv/old/deep/file",
        "M /srv/size",
        "M /var/lib/dpkg/status",
    ];
    assert_eq!(rest, expected);
    assert_eq!(lines(&env, &["a@s", "a", "--packages"]), ["A made-up:all 1.2-3"]);
    let processes = lines(&env, &["a@s", "a", "--processes"]);
    assert_eq!(processes, ["D sleep 7001", "A sleep 7003"]);

    // A disk alone boots; a VM without a process is compared by its disk.
    env.run(&["stop", "a"]).success();
    let stopped = env.run(&["diff", "a", "a@s", "--json"]).success().json();
    assert_eq!(stopped["from"]["looked_at"], "disk");
    assert!(stopped["processes"]["unknown"].is_string(), "{stopped}");
    assert_eq!(stopped["files"]["more"], 0);
    let added = stopped["files"]["changes"].as_array().expect("`changes`");
    assert!(added.iter().any(|one| one["path"] == "/srv/old/deep/file" && one["difference"] == "added"));
    let vms = env.run(&["list", "--json"]).success().json();
    assert_eq!(vms["vms"].as_array().map(Vec::len), Some(1), "no copy is left");
    env.finish();
}
