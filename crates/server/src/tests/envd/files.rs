//! Bytes of files.

use super::wire::{Envd, boxed, whole};
use crate::tests::fixture::Place;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::io::{Read, Write};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

async fn put(
    envd: &Envd,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<bytes::Bytes>,
) -> (u16, Value) {
    let response = envd.send("POST", path, headers, body).await;
    let status = response.status().as_u16();
    (status, serde_json::from_slice(&whole(response).await).unwrap())
}

async fn get(envd: &Envd, path: &str, headers: &[(&str, &str)]) -> (u16, Vec<u8>) {
    let response = envd.send("GET", path, headers, "").await;
    (response.status().as_u16(), whole(response).await.to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_goes_in_and_comes_out_again() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let written = put(&envd, "/files?path=new/dir/f.txt", &[OCTETS], "hello").await;
    let expected = json!([{ "path": "/home/user/new/dir/f.txt", "name": "f.txt", "type": "file" }]);
    assert_eq!(written, (200, expected));
    assert_eq!(get(&envd, "/files?path=~/new/dir/f.txt", &[]).await, (200, b"hello".to_vec()));
    put(&envd, "/files?path=new/dir/f.txt", &[OCTETS], "").await;
    assert_eq!(get(&envd, "/files?path=new/dir/f.txt", &[]).await, (200, vec![]));
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 31) as u8).collect();
    put(&envd, "/files?path=large", &[OCTETS], large.clone()).await;
    let response = envd.send("GET", "/files?path=large", &[], "").await;
    assert_eq!(response.headers()["content-length"], "3000000");
    assert!(whole(response).await == large);
    // The query's user has the last word.
    let (_, written) = put(&envd, "/files?path=f&username=root", &[OCTETS], "x").await;
    assert_eq!(written[0]["path"], "/root/f");

    for (path, status) in [
        ("/files?path=nothing", 404),
        ("/files?path=/home", 400),
        ("/files?path=f&username=nobody-here", 401),
        ("/files?path=~other/f", 400),
    ] {
        let (found, body) = get(&envd, path, &[]).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((found, &body["code"]), (status, &json!(status)), "{path}: {body}");
        assert!(body["message"].is_string());
    }
    for (path, headers, status) in [
        ("/files?path=/home", vec![OCTETS], 400),
        ("/files", vec![OCTETS], 400),
        ("/files?path=f", vec![("content-type", "text/plain")], 400),
        ("/files?path=f", vec![OCTETS, ("content-encoding", "br")], 400),
        ("/files?path=f", vec![OCTETS, ("content-encoding", "gzip")], 400),
        ("/files?path=f&username=nobody-here", vec![OCTETS], 401),
    ] {
        let (found, body) = put(&envd, path, &headers, "body").await;
        assert_eq!((found, &body["code"]), (status, &json!(status)), "{path} {headers:?}: {body}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_brings_several_files() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let form = |parts: &[(&str, &str, &str)]| {
        let part = |(name, file, data): &(&str, &str, &str)| {
            format!(
                "--XX\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\
                 Content-Type: text/plain\r\n\r\n{data}\r\n"
            )
        };
        parts.iter().map(part).collect::<String>() + "--XX--\r\n"
    };
    let typed = [("content-type", "multipart/form-data; boundary=XX")];
    let (status, written) =
        put(&envd, "/files?path=one.txt", &typed, form(&[("file", "ignored", "1")])).await;
    assert_eq!((status, &written[0]["path"]), (200, &json!("/home/user/one.txt")));
    let several = form(&[("file", "d/a", "first"), ("other", "x", "skipped"), ("file", "/srv/b", "second")]);
    let (status, written) = put(&envd, "/files", &typed, several).await;
    assert_eq!(status, 200, "{written}");
    let paths: Vec<_> = written.as_array().unwrap().iter().map(|entry| entry["path"].clone()).collect();
    assert_eq!(paths, [json!("/home/user/d/a"), json!("/srv/b")]);
    assert_eq!(get(&envd, "/files?path=d/a", &[]).await.1, b"first");
    assert_eq!(get(&envd, "/files?path=/srv/b", &[]).await.1, b"second");
    for (path, body) in [
        ("/files", form(&[("file", "same", "1"), ("file", "same", "2")])),
        ("/files?path=one", form(&[("file", "a", "1"), ("file", "b", "2")])),
        ("/files", form(&[("other", "x", "y")])),
        ("/files", "no form at all".to_owned()),
    ] {
        let (status, body) = put(&envd, path, &typed, body).await;
        assert_eq!(status, 400, "{body}");
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_form_that_never_comes_to_a_part_is_broken_off() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let typed = [("content-type", "multipart/form-data; boundary=XX")];
    let long = "x".repeat(1024 * 1024);
    let endless_head = format!("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{long}");
    for body in [long.clone(), endless_head] {
        let (status, body) = put(&envd, "/files", &typed, body).await;
        assert_eq!(status, 400, "{body}");
        assert!(body["message"].as_str().unwrap().contains("belong to no part"), "{body}");
    }
    // A part is as long as it is, also one that is not written.
    let ignored = format!("--XX\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n{long}\r\n");
    let head = "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n";
    let (status, body) = put(&envd, "/files", &typed, format!("{ignored}{head}{long}\r\n--XX--\r\n")).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(get(&envd, "/files?path=f", &[]).await.1.len(), long.len());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_for_the_user_it_was_signed_for() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let link = envd.signed("write", "note");
    let typed = [("content-type", "application/octet-stream")];
    let holder = envd.without_token();
    assert_eq!(put(&holder, "/files?path=note", &typed, "x").await.0, 401);
    for whoever in [holder.clone(), holder.of_user("root")] {
        let (status, written) = put(&whoever, &link, &typed, "x").await;
        assert_eq!((status, &written[0]["path"]), (200, &json!("/home/user/note")), "{written}");
    }
    // Who has the token may name anybody.
    let (_, written) = put(&envd.of_user("root"), "/files?path=note", &typed, "x").await;
    assert_eq!(written[0]["path"], "/root/note");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_compressed_both_ways() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let text = "the same again and again\n".repeat(100_000);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    let compressed = encoder.finish().unwrap();
    let headers = [OCTETS, ("content-encoding", "gzip")];
    let (status, body) = put(&envd, "/files?path=text", &headers, compressed.clone()).await;
    assert_eq!(status, 200, "{body}");
    assert!(get(&envd, "/files?path=text", &[]).await.1 == text.as_bytes());
    let response = envd.send("GET", "/files?path=text", &[("accept-encoding", "gzip")], "").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let sent = whole(response).await;
    assert!(sent.len() < text.len() / 10);
    let mut back = String::new();
    GzDecoder::new(&sent[..]).read_to_string(&mut back).unwrap();
    assert!(back == text);
    let (status, _) =
        put(&envd, "/files?path=cut", &headers, compressed[..compressed.len() / 2].to_vec()).await;
    assert_eq!(status, 400, "half of it is not all of it");
    // Not worth it, or a part.
    put(&envd, "/files?path=short", &[OCTETS], "short").await;
    for (path, range) in [("short", "bytes=0-"), ("text", "bytes=0-99")] {
        let asked = [("accept-encoding", "gzip"), ("range", range)];
        let response = envd.send("GET", &format!("/files?path={path}"), &asked, "").await;
        assert!(!response.headers().contains_key("content-encoding"));
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_sent_and_nothing_where_nothing_has_changed() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    put(&envd, "/files?path=f", &[OCTETS], "0123456789").await;
    let part = envd.send("GET", "/files?path=f", &[("range", "bytes=2-4")], "").await;
    assert_eq!(
        (part.status().as_u16(), &part.headers()["content-range"]),
        (206, &"bytes 2-4/10".parse().unwrap())
    );
    let modified = part.headers()["last-modified"].to_str().unwrap().to_owned();
    assert_eq!(whole(part).await, "234");
    assert_eq!(get(&envd, "/files?path=f", &[("range", "bytes=-3")]).await, (206, b"789".to_vec()));
    assert_eq!(get(&envd, "/files?path=f", &[("range", "bytes=10-")]).await.0, 416);
    assert_eq!(get(&envd, "/files?path=f", &[("if-modified-since", &modified)]).await, (304, vec![]));
    assert_eq!(get(&envd, "/files?path=nothing", &[("range", "bytes=0-")]).await.0, 404);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_stays_with_its_file_until_it_is_written_again() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let headers = [OCTETS, ("X-Metadata-Author", "ada"), ("x-metadata-k.2", "v w")];
    let (_, written) = put(&envd, "/files?path=f", &headers, "x").await;
    let expected = json!({ "author": "ada", "k.2": "v w" });
    assert_eq!(written[0]["metadata"], expected);
    let stat = async || {
        let found = envd.done("filesystem.Filesystem/Stat", json!({ "path": "f" })).await;
        found["entry"]["metadata"].clone()
    };
    assert_eq!(stat().await, expected);
    put(&envd, "/files?path=f", &[OCTETS, ("x-metadata-other", "1")], "x").await;
    assert_eq!(stat().await, json!({ "other": "1" }));
    put(&envd, "/files?path=f", &[OCTETS], "x").await;
    assert_eq!(stat().await, Value::Null);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_said_to_be_full() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    // More than the fake's disk takes of one file.
    let (status, body) = put(&envd, "/files?path=huge", &[OCTETS], vec![7; 65 * 1024 * 1024]).await;
    assert_eq!((status, &body["code"]), (507, &json!(507)), "{body}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_files_become_one() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    for (path, text) in [("1", "one "), ("2", "two")] {
        put(&envd, &format!("/files?path={path}"), &[OCTETS], text).await;
    }
    let compose = json!({ "source_paths": ["1", "~/2"], "destination": "whole/f" });
    let typed = [("content-type", "application/json")];
    let (status, made) = put(&envd, "/files/compose", &typed, compose.to_string()).await;
    assert_eq!((status, &made["path"]), (200, &json!("/home/user/whole/f")));
    assert_eq!(get(&envd, "/files?path=whole/f", &[]).await.1, b"one two");
    assert_eq!(get(&envd, "/files?path=1", &[]).await.0, 404);
    let again = put(&envd, "/files/compose", &typed, compose.to_string()).await;
    assert_eq!(again.0, 404);
    for bad in [json!({ "destination": "x" }), json!({ "source_paths": ["2"] })] {
        assert_eq!(put(&envd, "/files/compose", &typed, bad.to_string()).await.0, 400);
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sandbox_uses_is_its_own_word() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    let (status, body) = get(&envd, "/metrics", &[]).await;
    let metrics: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &metrics["cpu_count"], &metrics["cpu_used_pct"]), (200, &json!(1), &json!(12.5)));
    assert!(metrics["mem_total"].as_u64() > metrics["mem_used"].as_u64(), "{metrics}");
    assert_eq!(metrics["disk_total"], 1 << 30);
    assert_eq!(get(&envd, "/envs", &[]).await, (200, b"{}".to_vec()));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_leaves_costs_nothing_further() {
    let place = Place::new();
    let (daemon, envd) = boxed(&place).await;
    put(&envd, "/files?path=f", &[OCTETS], vec![1; 8 * 1024 * 1024]).await;
    for _ in 0..64 {
        let response = envd.send("GET", "/files?path=f", &[], "").await;
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
    }
    // Streams of the guest are counted: one that were not given back would be missed by now.
    assert_eq!(get(&envd, "/files?path=f", &[]).await.1.len(), 8 * 1024 * 1024);
    daemon.stop().await;
}
