//! The layers of a VM's data disk while it runs: who may write to which, and moving on to a new one.
//!
//! ```text
//!   top        flock exclusive   the VMM writes to it, nobody else may
//!   frozen     flock shared      others may read it as well; nobody may start a VM that writes to it
//! ```
//! Two VMMs on one disk destroy it. The VMM's own image locks would refuse a second writer as well, but cannot say who
//! the first is; the kernel's list of locks can.

use super::{
    machine::{CallError, StartError},
    qmp::Command,
    vmm::Vmm,
};
use crate::{
    BootStep, DiskStack, Durability,
    disk::{self, DiskError, Kind, MAX_LAYERS},
};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The first layer when the VMM starts, as the VMM knows it.
pub(crate) const FIRST_NODE: &str = "data";

/// A layer that is written to, for a command line or for a running VMM, without what it is over.
pub(crate) fn layer(path: &Path, durability: Durability, node: &str) -> Value {
    // A guest's fsync reaches the host's disk, at the price of one there, unless the VM is destroyed with its
    // request anyway. A boot takes less than a tenth of a second longer for it.
    let cache = json!({ "direct": false, "no-flush": durability == Durability::Volatile });
    json!({
        "driver": "qcow2", "node-name": node, "cache": cache, "discard": "unmap",
        // The keeper holds a lock that can name its holder; this one also keeps other programs out.
        "file": {
            "driver": "file", "filename": path, "cache": cache, "discard": "unmap", "locking": "auto",
        },
    })
}

/// What a layer lies over, newest first: read, and never written to. Frozen layers are shared by VMs, so the VMM does
/// not lock them.
pub(crate) fn frozen(layers: &[PathBuf], template: &Path) -> Value {
    let template = json!({
        "driver": "raw", "read-only": true,
        "file": { "driver": "file", "filename": template, "read-only": true, "locking": "off" },
    });
    layers.iter().rev().fold(template, |below, path| {
        json!({
            "driver": "qcow2", "read-only": true,
            "file": { "driver": "file", "filename": path, "read-only": true, "locking": "off" },
            "backing": below,
        })
    })
}

#[derive(Debug)]
pub(super) struct Disk {
    top: Layer,
    template: PathBuf,
    /// What of the stack below the top the VMM knows by a name, newest first.
    named: Vec<String>,
    /// Held for their locks alone.
    frozen: Vec<File>,
    durability: Durability,
    /// Of nodes ever made; no name is used twice.
    made: u32,
    /// Whether the CPUs may have run since the top layer was put there.
    used: bool,
}

#[derive(Debug)]
struct Layer {
    node: String,
    path: PathBuf,
    lock: File,
}

/// A layer the VMM has opened and not written to yet.
#[derive(Debug)]
pub(super) struct Next(Layer);

impl Disk {
    /// Takes all locks, or none.
    pub fn lock(stack: &DiskStack, durability: Durability) -> Result<Self, StartError> {
        let start_error = |message| StartError { step: BootStep::Keeper, message };
        let Some(path) = stack.top() else { return Err(start_error("the VM has no data disk".into())) };
        let lock = lock(path, FlockOperation::NonBlockingLockExclusive).map_err(start_error)?;
        let frozen = stack.layers[1..].iter().map(|path| lock_frozen(path)).collect::<Result<_, _>>();
        let top = Layer { node: FIRST_NODE.into(), path: path.clone(), lock };
        let (frozen, template) = (frozen.map_err(start_error)?, stack.template.clone());
        Ok(Self { top, template, named: Vec::new(), frozen, durability, made: 0, used: true })
    }

    /// What the guest wrote until now, on its way to the host's disk: then there is less to flush when time counts.
    pub async fn flush(&self) -> io::Result<()> {
        if self.durability == Durability::Volatile {
            return Ok(());
        }
        let top = self.top.lock.try_clone()?;
        tokio::task::spawn_blocking(move || top.sync_data()).await.map_err(io::Error::other)?
    }

    /// Makes the VMM open a new layer beside the one it writes to; `None` if it writes to that one already. Nothing is
    /// left of a failure.
    pub async fn prepare(&mut self, vmm: &Vmm, path: &Path) -> Result<Option<Next>, CallError> {
        let Some(next) = self.take(path)? else { return Ok(None) };
        let mut options = layer(path, self.durability, &next.0.node);
        // It gets one when it is put on top.
        options["backing"] = Value::Null;
        vmm.ask(Command::BlockdevAdd(options)).await?;
        Ok(Some(next))
    }

    /// Locks a layer that is to be the next top; `None` if it is the top already and nothing was written to it.
    pub fn take(&mut self, path: &Path) -> Result<Option<Next>, CallError> {
        if path == self.top.path {
            return match self.used {
                false => Ok(None),
                true => Err(CallError::Refused(format!(
                    "the VM has written to the layer `{}`: the state to be taken is below it",
                    path.display()
                ))),
            };
        }
        if self.frozen.len() + 2 > MAX_LAYERS {
            return Err(CallError::Refused(format!(
                "a data disk of more than {MAX_LAYERS} layers is not supported"
            )));
        }
        let refused = |error: DiskError| CallError::Refused(error.to_string());
        let (new, top) =
            (disk::inspect(path).map_err(refused)?, disk::inspect(&self.top.path).map_err(refused)?);
        if new.size != top.size || !self.is_below(&new).map_err(refused)? {
            return Err(CallError::Refused(format!(
                "the layer `{}` is not over `{}`",
                path.display(),
                self.top.path.display()
            )));
        }
        let lock = lock(path, FlockOperation::NonBlockingLockExclusive).map_err(CallError::Refused)?;
        self.made += 1;
        let node = format!("layer-{}", self.made);
        Ok(Some(Next(Layer { node, path: path.to_owned(), lock })))
    }

    /// Whether the present top is below it. What lies between was meant to be the top by checkpoints that failed or
    /// whose answer was lost: empty layers, which the VM does without until it starts again.
    fn is_below(&self, new: &disk::Layer) -> Result<bool, DiskError> {
        let (mut kind, mut below) = (new.kind, new.below.clone());
        for _ in 0..MAX_LAYERS {
            match kind {
                Kind::Layer if below == self.top.path => return Ok(true),
                Kind::Layer => disk::Layer { kind, below, .. } = disk::inspect(&below)?,
                Kind::Template => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Takes back [`prepare`](Self::prepare).
    pub async fn discard(&self, vmm: &Vmm, next: Next) -> Result<(), CallError> {
        vmm.ask(Command::BlockdevDel { node: next.0.node }).await
    }

    /// The VMM writes to the new layer from now on. Its CPUs stand still.
    pub async fn switch(&mut self, vmm: &Vmm, next: Next) -> Result<(), (Next, CallError)> {
        let command = Command::BlockdevSnapshot { node: self.top.node.clone(), overlay: next.0.node.clone() };
        if let Err(error) = vmm.ask(command).await {
            return Err((next, error));
        }
        self.put_on_top(next);
        Ok(())
    }

    /// What was taken is the top from now on.
    pub fn put_on_top(&mut self, next: Next) {
        let old = std::mem::replace(&mut self.top, next.0);
        // The VMM may only read it now, as others may. It has no writer between the two locks either: nobody is given
        // a frozen layer to write to.
        let _ = rustix::fs::flock(&old.lock, FlockOperation::NonBlockingLockShared);
        self.frozen.push(old.lock);
        self.named.insert(0, old.node);
        self.used = false;
    }

    /// Has the VMM read what lies below its top layer from other files that say the same, while the VM runs on. `layers`
    /// is the whole disk, newest first. On failure it reads from those it did, unless it is told otherwise.
    pub async fn restack(&mut self, vmm: &Vmm, layers: &[PathBuf]) -> Result<(), CallError> {
        let (below, locks) = self.below(layers)?;
        self.made += 1;
        let node = format!("below-{}", self.made);
        let mut options = frozen(below, &self.template);
        options["node-name"] = json!(node);
        vmm.ask(Command::BlockdevAdd(options)).await?;
        let mut top = layer(&self.top.path, self.durability, &self.top.node);
        top["backing"] = json!(node);
        if let Err(error) = vmm.ask(Command::BlockdevReopen { options: vec![top] }).await {
            // Refused while it is in use, should the answer alone have been lost: then it stays, and is named.
            if vmm.ask(Command::BlockdevDel { node: node.clone() }).await.is_err() {
                self.named.insert(0, node);
            }
            return Err(error);
        }
        self.frozen = locks;
        let mut kept = vec![node];
        for node in std::mem::take(&mut self.named) {
            // What cannot be closed is tried again the next time; it costs descriptors and nothing else.
            if vmm.ask(Command::BlockdevDel { node: node.clone() }).await.is_err() {
                kept.push(node);
            }
        }
        self.named = kept;
        Ok(())
    }

    /// As [`restack`](Self::restack), for a VM that reads from none of them.
    pub fn relock(&mut self, layers: &[PathBuf]) -> Result<(), CallError> {
        self.frozen = self.below(layers)?.1;
        Ok(())
    }

    /// What of a whole disk lies below the top layer, and the locks on it.
    fn below<'a>(&self, layers: &'a [PathBuf]) -> Result<(&'a [PathBuf], Vec<File>), CallError> {
        let place = layers.iter().position(|layer| *layer == self.top.path);
        let Some(below) = place.map(|place| &layers[place + 1..]) else {
            let message = format!("`{}` is not part of the disk given", self.top.path.display());
            return Err(CallError::Refused(message));
        };
        let refused = |error: DiskError| CallError::Refused(error.to_string());
        let whole = [std::slice::from_ref(&self.top.path), below].concat();
        disk::check(&DiskStack { layers: whole, template: self.template.clone() }).map_err(refused)?;
        let locks = below.iter().map(|path| lock_frozen(path)).collect::<Result<Vec<_>, _>>();
        Ok((below, locks.map_err(CallError::Refused)?))
    }

    /// The CPUs may run from now on.
    pub fn in_use(&mut self) {
        self.used = true;
    }
}

fn lock_frozen(path: &Path) -> Result<File, String> {
    lock(path, FlockOperation::NonBlockingLockShared)
}

fn lock(path: &Path, operation: FlockOperation) -> Result<File, String> {
    let writes = operation == FlockOperation::NonBlockingLockExclusive;
    let opened = File::options().read(true).write(writes).open(path);
    let file = opened.map_err(|e| format!("cannot open the data disk `{}`: {e}", path.display()))?;
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = lock_holder(&file).unwrap_or_else(|| "an unknown process".into());
            Err(format!("the data disk `{}` is in use by {holder}", path.display()))
        }
        Err(e) => Err(format!("cannot lock the data disk `{}`: {e}", path.display())),
    }
}

fn lock_holder(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str()))
            .then(|| fields.get(4).copied())?
    })?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(format!("process {pid} (`{}`)", command.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(directory: &Path, names: &[&str]) -> DiskStack {
        let layers = names.iter().map(|name| directory.join(name)).collect();
        DiskStack { layers, template: directory.join("template") }
    }

    #[test]
    fn a_layer_is_written_to_by_one_vm_and_read_by_many() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        ["a", "b", "c"].iter().for_each(|name| std::fs::write(directory.join(name), "").unwrap());
        let lock = |names: &[&str]| Disk::lock(&stack(directory, names), Durability::Volatile);

        let first = lock(&["b", "a"]).unwrap();
        let second = lock(&["c", "a"]).unwrap();
        let refused = lock(&["b", "a"]).unwrap_err().message;
        assert!(refused.contains("in use by process"), "two writers: {refused}");
        assert!(lock(&["a"]).is_err(), "a writer below readers");
        drop(second);
        assert!(lock(&["c", "b", "a"]).is_err(), "a reader above a writer");
        drop(first);
        lock(&["a"]).unwrap();
        assert!(lock(&[]).is_err());
    }
}
