//! `history`: what was run, what it said, and the same again in a fork.

use crate::fixture::World;

#[test]
fn what_was_run_is_listed_shown_and_run_again() {
    let world = World::new();
    world.run(&["create", "web", "--start"]).exits(0);
    world.run(&["snapshot", "take", "web", "clean"]).exits(0);
    world.run(&["exec", "web", "--agent", "planner", "--", "echo", "hello"]).exits(0);
    world.run(&["exec", "web", "--", "exit", "3"]).exits(3);
    let words = ["history", "web", "--json"];
    let all = world.until(&words, |list| {
        list["total"] == 2
            && list["entries"][0]["ended"].is_string()
            && list["entries"][1]["ended"].is_string()
    });
    let id = all["entries"][1]["id"].as_str().expect("an id").to_owned();
    let table = world.run(&["history", "web"]).exits(0);
    let mut lines = table.stdout.lines().skip(1);
    let (failed, told) = (lines.next().expect("a line"), lines.next().expect("a line"));
    assert!(
        told.contains("planner") && told.contains("echo hello") && told.ends_with("snapshot"),
        "{table:#?}"
    );
    assert!(failed.contains("exit 3") && failed.contains("uid:"), "{table:#?}");
    let failures = world.run(&["history", "--failures", "--since", "1h"]).exits(0);
    assert_eq!(failures.stdout.lines().count(), 2, "{failures:#?}");
    let nobody = world.run(&["history", "--agent", "somebody-else"]).exits(0).prints("");
    assert!(nobody.stderr.contains("nothing was run"), "{nobody:#?}");
    let one = world.run(&["history", "--limit", "1"]).exits(0);
    assert!(one.stderr.contains("1 of 2"), "{one:#?}");

    world.run(&["history", "show", &id, "--stdout"]).exits(0).prints("hello\n");
    let details = world.run(&["history", "show", &id]).exits(0);
    assert!(details.stdout.contains("planner") && details.stdout.contains("\nhello\n"), "{details:#?}");
    let again = world.run(&["history", "replay", &id, "--exit-code"]).exits(0);
    assert!(again.stdout.contains("exit") && again.stdout.contains("as the first time"), "{again:#?}");
    let kept = world.run(&["history", "replay", &id, "--keep", "again", "--json"]).exits(0).json();
    assert_eq!((&kept["kept"], &kept["same"]["stdout"]), (&true.into(), &true.into()));
    world.run(&["status", "again"]).exits(0);
    world.run(&["history", "again"]).exits(0);
    world.run(&["history", "replay", "01a1fe7c-2c8e-7496-a268-c6ab187a9c91"]).exits(3);
    world.run(&["history", "--", "show"]).exits(3);
}
