//! What the fake guest is made of. Its image is the tree a new guest has.

use super::{
    files::{Files, Node, Tree},
    world::MACHINE_ID,
};
use offshoot_guest_proto::{
    message::{
        ChangedPath, Contents, DiskEntry, DiskKind, MAX_PAGE, Paged, ProcessInfo, Stamp, SurveyRequest,
        path_order,
    },
    server::{Detached, SurveyPeer},
};
use serde::Serialize;
use serde_bytes::ByteBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// No two listings have stamps in common: what two of them have in common is found out by the contents.
static STAMPS: AtomicU64 = AtomicU64::new(0);

pub(super) async fn serve(
    request: SurveyRequest,
    files: &Files,
    processes: Vec<ProcessInfo>,
    mut peer: SurveyPeer,
) -> Result<(), Detached> {
    peer.accept().await?;
    let tree = files.all();
    match request {
        SurveyRequest::Changes => pages(changes(&tree, &Files::default().all()), peer).await,
        SurveyRequest::Contents { paths } => {
            pages(paths.iter().map(|path| contents(&tree, path)).collect(), peer).await
        }
        SurveyRequest::Processes => pages(processes, peer).await,
    }
}

async fn pages<T: Serialize>(mut items: Vec<T>, mut peer: SurveyPeer) -> Result<(), Detached> {
    while !items.is_empty() {
        let rest = items.split_off(items.len().min(MAX_PAGE));
        peer.send(&Paged::<T>::Working).await?;
        peer.send(&Paged::Page(items)).await?;
        items = rest;
    }
    peer.send(&Paged::<T>::End { left_out: 0 }).await
}

fn changes(now: &Tree, image: &Tree) -> Vec<ChangedPath> {
    let mut paths: Vec<&String> = now.keys().chain(image.keys()).filter(|path| *path != MACHINE_ID).collect();
    paths.sort_by(|a, b| path_order(a.as_bytes(), b.as_bytes()));
    paths.dedup();
    let changed = |path: &String| {
        let (now, image) = (now.get(path), image.get(path));
        (now != image).then(|| ChangedPath {
            path: path.clone().into_bytes(),
            now: now.map(entry),
            image: image.map(entry),
        })
    };
    paths.into_iter().filter_map(changed).collect()
}

fn entry(node: &Node) -> DiskEntry {
    let (kind, mode, size, target) = match node {
        Node::Directory { mode } => (DiskKind::Directory, *mode, 0, None),
        Node::File { data, mode } => (DiskKind::File, *mode, data.len() as u64, None),
        Node::Symlink { target } => {
            (DiskKind::Symlink, 0o777, 0, Some(ByteBuf::from(target.clone().into_bytes())))
        }
    };
    let stamp = Stamp { inode: STAMPS.fetch_add(1, Ordering::Relaxed), modified_ns: 0, changed_ns: 0 };
    DiskEntry { kind, mode, uid: 0, gid: 0, size, stamp, target, device: None }
}

fn contents(tree: &Tree, path: &[u8]) -> Contents {
    match std::str::from_utf8(path).ok().and_then(|path| tree.get(path)) {
        Some(Node::File { data, .. }) => Contents::Hash(*blake3::hash(data).as_bytes()),
        _ => Contents::Gone,
    }
}
