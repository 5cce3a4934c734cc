//! Files and TCP inside a VM.

use super::fixture::{Daemon, PATIENCE, Place, refused, vm};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use offshoot_api::v1::{
    DirectoryList, FileKind, ListQuery, MakeDirectory, ReadQuery, RemoveFile, RenameFile, SetMode, StatQuery,
    Symlink, WriteQuery,
};
use offshoot_types::ErrorCode;
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

fn write(path: &str) -> WriteQuery {
    WriteQuery { path: path.into(), ..WriteQuery::default() }
}

/// `pieces` times 64 KiB, all different.
fn pieces(pieces: u8) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + Sync + 'static {
    stream::iter((0..pieces).map(|piece| Ok(Bytes::from(vec![piece; 64 * 1024]))))
}

async fn read(daemon: &Daemon, query: &ReadQuery) -> Vec<u8> {
    let download = daemon.client.read_file(&vm("web"), query).await.unwrap();
    let chunks: Vec<Bytes> = download.content.try_collect().await.unwrap();
    chunks.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_go_in_and_come_out_unchanged_whole_and_by_range() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let stat = daemon.client.write_file(&vm("web"), &write("/workspace/big"), pieces(160)).await.unwrap();
    assert_eq!((stat.kind, stat.size), (FileKind::File, 160 * 64 * 1024));
    let whole = read(&daemon, &ReadQuery { path: "/workspace/big".into(), ..ReadQuery::default() }).await;
    let sent: Vec<u8> = (0..160_u8).flat_map(|piece| vec![piece; 64 * 1024]).collect();
    assert!(whole == sent);
    let query = ReadQuery { path: "/workspace/big".into(), offset: 65_530, length: Some(10), user: None };
    assert_eq!(read(&daemon, &query).await, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_leaves_the_old_file() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let old = stream::iter([Ok(Bytes::from_static(b"old"))]);
    daemon.client.write_file(&vm("web"), &write("/workspace/f"), old).await.unwrap();
    let broken = pieces(4).chain(stream::iter([Err(io::Error::other("the disk is gone"))]));
    daemon.client.write_file(&vm("web"), &write("/workspace/f"), broken).await.unwrap_err();
    let query = ReadQuery { path: "/workspace/f".into(), ..ReadQuery::default() };
    assert_eq!(read(&daemon, &query).await, b"old");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_refused_says_why_even_while_it_is_being_sent() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let nowhere = daemon.client.write_file(&vm("web"), &write("/nowhere/f"), pieces(200)).await;
    refused(nowhere, ErrorCode::NotFound);
    let relative = daemon.client.write_file(&vm("web"), &write("f"), pieces(200)).await;
    assert!(refused(relative, ErrorCode::InvalidArgument).message.contains("`path`"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_is_made_listed_renamed_linked_and_removed() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    let (client, web) = (&daemon.client, vm("web"));
    let path = |text: &str| text.to_owned();
    let mkdir = MakeDirectory { path: path("/workspace/a/b"), parents: true, ..MakeDirectory::default() };
    client.make_directory(&web, &mkdir).await.unwrap();
    client.write_file(&web, &write("/workspace/a/f"), pieces(1)).await.unwrap();
    let rename = RenameFile { from: path("/workspace/a/f"), to: path("/workspace/a/g"), user: None };
    client.rename_file(&web, &rename).await.unwrap();
    let chmod = SetMode { path: path("/workspace/a/g"), mode: 0o600, user: None };
    client.set_mode(&web, &chmod).await.unwrap();
    let link = Symlink { target: path("g"), path: path("/workspace/a/l"), user: None };
    client.symlink(&web, &link).await.unwrap();

    let list = ListQuery { path: path("/workspace/a"), ..ListQuery::default() };
    let listed = client.list_directory(&web, &list).await.unwrap();
    let names = |listed: &DirectoryList| -> Vec<String> {
        listed.entries.iter().map(|entry| entry.name.clone()).collect()
    };
    assert_eq!(
        (names(&listed), listed.truncated, &listed.next_cursor),
        (vec!["b".into(), "g".into(), "l".into()], false, &None)
    );
    let mut page = ListQuery { limit: Some(2), ..list.clone() };
    let first = client.list_directory(&web, &page).await.unwrap();
    assert_eq!((names(&first), first.next_cursor.as_deref()), (vec!["b".into(), "g".into()], Some("g")));
    page.cursor = first.next_cursor;
    let last = client.list_directory(&web, &page).await.unwrap();
    assert_eq!((names(&last), last.truncated, last.next_cursor), (vec!["l".to_owned()], false, None));
    page.limit = Some(0);
    refused(client.list_directory(&web, &page).await, ErrorCode::InvalidArgument);
    let stat = |follow| StatQuery { path: path("/workspace/a/l"), follow, user: None };
    assert_eq!(client.stat_file(&web, &stat(false)).await.unwrap().kind, FileKind::Symlink);
    let followed = client.stat_file(&web, &stat(true)).await.unwrap();
    assert_eq!((followed.kind, followed.mode), (FileKind::File, 0o600));

    let remove = |recursive| RemoveFile { path: path("/workspace/a"), recursive, user: None };
    refused(client.remove_file(&web, &remove(false)).await, ErrorCode::InvalidArgument);
    client.remove_file(&web, &remove(true)).await.unwrap();
    refused(client.list_directory(&web, &list).await, ErrorCode::NotFound);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_port_is_reached_and_each_direction_ends_by_itself() {
    let place = Place::new();
    let daemon = Daemon::explicit(&place).await;
    daemon.boot("web").await;
    // The fake guest's echo service.
    let (mut from, mut to) = tokio::io::split(daemon.client.tcp(&vm("web"), 7).await.unwrap());
    let exchange = async {
        to.write_all(b"ping").await.unwrap();
        to.flush().await.unwrap();
        let mut back = [0; 4];
        from.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"ping");
        let send = async {
            to.write_all(&[1; 1_000_000]).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut rest = Vec::new();
        let (_, read) = tokio::join!(send, from.read_to_end(&mut rest));
        assert_eq!(read.unwrap(), 1_000_000);
    };
    timeout(PATIENCE, exchange).await.unwrap();
    let closed = daemon.client.tcp(&vm("web"), 81).await;
    refused(closed, ErrorCode::Unavailable);
    daemon.stop().await;
}
