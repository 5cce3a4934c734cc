//! Files by their names, by the wire's service.

use super::wire::{Envd, boxed};
use crate::tests::fixture::{Place, patient, vm};
use serde_json::{Value, json};

async fn call(envd: &Envd, method: &str, message: Value) -> Value {
    envd.done(&format!("filesystem.Filesystem/{method}"), message).await
}

async fn refused(envd: &Envd, method: &str, message: Value, code: &str) -> String {
    envd.refused(&format!("filesystem.Filesystem/{method}"), message, code).await
}

fn at(path: &str) -> Value {
    json!({ "path": path })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_are_made_listed_moved_and_removed() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let made = call(&envd, "MakeDir", at("a/b")).await;
    let expected =
        [("path", "/home/user/a/b"), ("name", "b"), ("type", "FILE_TYPE_DIRECTORY"), ("owner", "user")];
    for (key, value) in expected {
        assert_eq!(made["entry"][key], value, "{made}");
    }
    assert_eq!(made["entry"]["permissions"], "drwxr-xr-x");
    refused(&envd, "MakeDir", at("~/a/b"), "already_exists").await;
    let parent = call(&envd, "Stat", at("a")).await;
    assert_eq!(parent["entry"]["owner"], "user", "parents are the user's too");
    call(&envd, "MakeDir", at("a/b/c/d")).await;
    let paths = |listed: Value| {
        let entries = listed["entries"].as_array().unwrap().clone();
        entries.iter().map(|entry| entry["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(paths(call(&envd, "ListDir", at("a")).await), ["/home/user/a/b"]);
    let deeper = call(&envd, "ListDir", json!({ "path": "/home/user/a", "depth": 2 })).await;
    assert_eq!(paths(deeper), ["/home/user/a/b", "/home/user/a/b/c"]);
    let moved = call(&envd, "Move", json!({ "source": "a/b", "destination": "x/y" })).await;
    assert_eq!(moved["entry"]["path"], "/home/user/x/y");
    refused(&envd, "Stat", at("a/b"), "not_found").await;
    refused(&envd, "Move", json!({ "source": "a/b", "destination": "z" }), "not_found").await;
    call(&envd, "Remove", at("x")).await;
    call(&envd, "Remove", at("x")).await;
    refused(&envd, "ListDir", at("x"), "not_found").await;
    assert_eq!(call(&envd, "ListDir", at("a")).await, json!({ "entries": [] }));

    // Another user has another home; one that is not there has none.
    let root = envd.of_user("root");
    let made = call(&root, "MakeDir", at("d")).await;
    assert_eq!((&made["entry"]["path"], &made["entry"]["owner"]), (&json!("/root/d"), &json!("root")));
    let stranger = envd.of_user("nobody-here");
    assert!(refused(&stranger, "Stat", at("/"), "unauthenticated").await.contains("nobody-here"));
    refused(&envd, "Stat", at("~root/d"), "invalid_argument").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_watched_by_a_stream() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    call(&envd, "MakeDir", at("w/sub")).await;
    let watch = json!({ "path": "w", "recursive": true, "includeEntry": true });
    let mut events = envd.stream("filesystem.Filesystem/WatchDir", watch).await;
    assert_eq!(events.next().await, Ok(json!({ "start": {} })));
    let mut shallow = envd.stream("filesystem.Filesystem/WatchDir", at("w")).await;
    assert_eq!(shallow.next().await, Ok(json!({ "start": {} })));
    envd.send("POST", "/files?path=w/sub/f", &[("content-type", "application/octet-stream")], "x").await;
    call(&envd, "Move", json!({ "source": "w/sub/f", "destination": "w/g" })).await;
    let mut seen = Vec::new();
    while seen.last() != Some(&("EVENT_TYPE_CREATE".to_owned(), "g".to_owned())) {
        let event = events.next().await.unwrap()["filesystem"].clone();
        if event["name"] == "g" {
            assert_eq!(event["entry"]["path"], "/home/user/w/g");
        }
        let text = |key: &str| event[key].as_str().unwrap().to_owned();
        seen.push((text("type"), text("name")));
    }
    for kind in ["EVENT_TYPE_CREATE", "EVENT_TYPE_WRITE", "EVENT_TYPE_RENAME"] {
        assert!(seen.contains(&(kind.to_owned(), "sub/f".to_owned())), "{kind} in {seen:?}");
    }
    let first = shallow.next().await.unwrap()["filesystem"].clone();
    assert_eq!(first, json!({ "name": "g", "type": "EVENT_TYPE_CREATE" }), "nothing of what is deeper");
    for (path, code) in [("w/g", "invalid_argument"), ("nothing", "not_found")] {
        envd.stream("filesystem.Filesystem/WatchDir", at(path)).await.failed(code).await;
    }
    let watch = [at("w")];
    let limited = [("connect-timeout-ms", "50")];
    let mut limited = envd.stream_of("filesystem.Filesystem/WatchDir", &watch, &limited).await;
    limited.next().await.unwrap();
    limited.failed("deadline_exceeded").await;
    daemon.client.stop(&vm("box"), &patient()).await.unwrap();
    while events.next().await.is_ok() {}
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_watched_by_asking() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let created = call(&envd, "CreateWatcher", at("~")).await;
    let watcher = json!({ "watcherId": created["watcherId"] });
    let names = async || {
        let mut names = Vec::new();
        // They come by another way than the answer to what caused them.
        while !names.contains(&"last".to_owned()) {
            let events = call(&envd, "GetWatcherEvents", watcher.clone()).await;
            let all = events["events"].as_array().unwrap().clone();
            names.extend(all.iter().map(|event| event["name"].as_str().unwrap().to_owned()));
            tokio::task::yield_now().await;
        }
        names
    };
    call(&envd, "MakeDir", at("first")).await;
    call(&envd, "MakeDir", at("last")).await;
    assert_eq!(names().await, ["first", "last"]);
    call(&envd, "Remove", at("last")).await;
    assert_eq!(names().await, ["last"]);

    // A guest that was away has forgotten the watch; the next question begins it anew.
    daemon.client.suspend(&vm("box"), &patient()).await.unwrap();
    daemon.client.resume(&vm("box"), &patient()).await.unwrap();
    loop {
        call(&envd, "GetWatcherEvents", watcher.clone()).await;
        call(&envd, "MakeDir", at("last")).await;
        let events = call(&envd, "GetWatcherEvents", watcher.clone()).await;
        call(&envd, "Remove", at("last")).await;
        if events["events"].as_array().unwrap().iter().any(|event| event["name"] == "last") {
            break;
        }
    }
    call(&envd, "RemoveWatcher", watcher.clone()).await;
    for method in ["GetWatcherEvents", "RemoveWatcher"] {
        refused(&envd, method, watcher.clone(), "not_found").await;
    }
    for _ in 0..64 {
        call(&envd, "CreateWatcher", at("~")).await;
    }
    refused(&envd, "CreateWatcher", at("~"), "resource_exhausted").await;
    refused(&envd, "CreateWatcher", at("nothing"), "not_found").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_nobody_fetches_are_not_held_for_ever() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let created = call(&envd, "CreateWatcher", at("~")).await;
    let watcher = json!({ "watcherId": created["watcherId"] });
    // Each command makes a hundred changes, and there is room for some thousands.
    let script = vec!["touch /home/user/f"; 100].join("; ");
    let mut lost = false;
    for _ in 0..200 {
        let (_, mut events) = envd.bash(&script, false).await;
        events.ended().await;
        let (status, answer) = envd.call("filesystem.Filesystem/Stat", at("~")).await;
        assert_eq!(status, 200, "{answer}");
    }
    for _ in 0..1000 {
        let (status, answer) = envd.call("filesystem.Filesystem/GetWatcherEvents", watcher.clone()).await;
        if status != 200 {
            assert_eq!(answer["code"], "resource_exhausted", "{answer}");
            lost = true;
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(lost, "it is told that changes were dropped");
    call(&envd, "GetWatcherEvents", watcher).await;
    daemon.stop().await;
}
