//! What outlives the engines of a run: the host with its machines, the state directory, the clock; and what each engine
//! is made from.

use crate::{log::Log, trouble::Board};
use offshoot_engine::{
    BootFiles, Checkpoints, Clock, Deadlines, Engine, Images, Limits, Merging, Options, PoolOptions,
    Rebasing, StateDirLock,
};
use offshoot_policy::{Authorized, Decision, Policy};
use offshoot_provider::fake::{FakeHost, FakeProvider};
use offshoot_types::{Actor, Bytes, Command, ErrorCode, Failure, ImageDigest, NodeName, Owner};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

const UID: u32 = 1000;

/// The wall clock: the paused one of the runtime, and the turns that were given to it.
#[derive(Debug)]
pub struct Wall {
    began: tokio::time::Instant,
    turned: Mutex<jiff::SignedDuration>,
}

impl Wall {
    pub fn turn(&self, seconds: i64) {
        *self.turned.lock().unwrap() += jiff::SignedDuration::from_secs(seconds);
    }
}

impl Clock for Wall {
    fn now(&self) -> jiff::Timestamp {
        // 2026-01-01: far enough from both ends of time for every turn.
        let first = jiff::Timestamp::from_second(1_767_225_600).expect("a time");
        let passed = jiff::SignedDuration::try_from(self.began.elapsed()).expect("a short run");
        first + passed + *self.turned.lock().unwrap()
    }
}

#[derive(Debug)]
pub struct ImageFiles {
    file: PathBuf,
    pub missing: AtomicBool,
}

impl Images for ImageFiles {
    fn boot_files(&self, _: &ImageDigest) -> Result<BootFiles, Failure> {
        if self.missing.load(Ordering::SeqCst) {
            return Err(Failure::new(ErrorCode::Image, "a part of the image is missing"));
        }
        let part = || self.file.clone();
        Ok(BootFiles { kernel: part(), initramfs: part(), root: part(), disk_template: part() })
    }
}

#[derive(Debug)]
pub struct World {
    dir: TempDir,
    pub host: FakeHost,
    wall: Arc<Wall>,
    images: Arc<ImageFiles>,
    pub board: Board,
}

impl World {
    pub fn new(log: Log) -> Self {
        // In memory if there is a place: what survives a power cut is not tried here.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.expect("a directory");
        let file = dir.path().join("image");
        std::fs::write(&file, vec![0; 4096]).expect("an image");
        let wall = Wall { began: tokio::time::Instant::now(), turned: Mutex::default() };
        let (host, wall) = (FakeHost::new(), Arc::new(wall));
        let images = Arc::new(ImageFiles { file, missing: AtomicBool::new(false) });
        let board = Board::new(host.clone(), wall.clone(), images.clone(), log);
        Self { dir, host, wall, images, board }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
    pub fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub async fn engine(&self) -> Result<Engine, String> {
        let lock = StateDirLock::acquire_within(&self.state(), Duration::from_secs(10))
            .await
            .map_err(|error| format!("the state directory is not let go of: {error}"))?;
        let board = self.board.clone();
        let checkpoints = Checkpoints::new(move |at| {
            let board = board.clone();
            Box::pin(async move { board.visit(at).await })
        });
        let options = Options {
            runtime_dir: self.runtime(),
            images: self.images.clone(),
            providers: vec![Arc::new(FakeProvider::new(self.host.clone()))],
            provider: None,
            policy: policy(),
            limits: Limits::UNBOUNDED,
            deadlines: Deadlines::default(),
            pool: PoolOptions::default(),
            // As shallow as it gets, so that a short schedule merges too.
            merging: Merging { above: 3, at_least: 2 },
            history: Default::default(),
            rebasing: Rebasing { idle: Some(Duration::from_secs(60)), own_memory: Bytes(0) },
            clock: self.wall.clone(),
            node: NodeName::default(),
            checkpoints,
        };
        let engine = Engine::start(lock, options).await.map_err(|error| format!("no start: {error}"))?;
        self.board.attend(engine.store().clone());
        Ok(engine)
    }
}

fn policy() -> Policy {
    Policy::built_in(UID)
}

pub fn permit(engine: &Engine, command: Command) -> Authorized<Command> {
    let actor = Actor::LocalUser { uid: UID, owner: Owner::default() };
    let facts = engine.facts(&actor, &command.target());
    match policy().decide(&actor, command, &facts) {
        Decision::Permit(permit) => permit,
        other => panic!("{other:?}"),
    }
}
