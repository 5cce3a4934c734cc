//! One client's session, and the VM that is its own.
//!
//! ```text
//! Unused --first tool that names no VM--> Made(creation) --end--> Over
//!                                            |     ^                ^
//!       creation failed, VM stopped or gone  v     | next such tool |
//!                                         Doubted -'--------end-----'
//! ```
//! The name of the VM is decided before anything is asked for, so what a call began that was cancelled in its middle is
//! found again by the next one, and at the end. A creation runs in whoever waits for it, never unobserved.

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use offshoot_api::{
    Client, ClientError,
    v1::{Change, CreateVm, DestroyQuery, SetLife},
};
use offshoot_types::{ErrorCode, Failure, VmId, VmName, VmRef, VmStateName, Wake};
use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long a session's own VM may be idle before it is suspended, if nothing else is said.
pub const DEFAULT_IDLE: Duration = Duration::from_secs(10 * 60);
/// Label of VMs that were made for a session.
const LABEL: &str = "offshoot.mcp";

/// What becomes of a session's own VM when the session ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AtEnd {
    /// It goes on where it was when somebody asks something of it.
    #[default]
    Suspend,
    Stop,
    Destroy,
    /// It runs on, until it is idle for long enough.
    Keep,
}

impl AtEnd {
    pub const ALL: [Self; 4] = [Self::Suspend, Self::Stop, Self::Destroy, Self::Keep];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Suspend => "suspend",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
            Self::Keep => "keep",
        }
    }
}

impl fmt::Display for AtEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AtEnd {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|end| end.as_str() == text)
            .ok_or_else(|| format!("`{text:.40}` is none of suspend, stop, destroy and keep"))
    }
}

/// What a session is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Taken where a tool names no VM, instead of one of the session's own. It stays as it is at the end.
    pub vm: Option<VmRef>,
    /// What the session's own VM is to be. Without limits of its life it is suspended after [`DEFAULT_IDLE`]; its name
    /// is put behind what stands here.
    pub create: CreateVm,
    pub at_end: AtEnd,
}

/// Cheap to clone; clones are one session.
#[derive(Debug, Clone)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    client: Client,
    vm: Option<VmRef>,
    create: CreateVm,
    name: VmName,
    at_end: AtEnd,
    own: Mutex<Own>,
}

type Creation = Shared<BoxFuture<'static, Result<(), Failure>>>;

#[derive(Debug)]
enum Own {
    /// The session has not begun, and may never.
    NotBegun,
    Unused,
    Made(Creation),
    /// There may be one, which is not known to run.
    Doubted,
    Over,
}

/// Completes how a VM that was made for an agent rests: it stays for nobody to pay for, and goes on whoever suspended it, for
/// an agent has no other way to it than to use it.
pub fn rests(life: &mut SetLife) {
    life.idle_suspend_ms.get_or_insert(DEFAULT_IDLE.as_millis() as u64);
    life.wake.get_or_insert_with(|| Wake::Always.to_string());
}

impl Session {
    /// Makes nothing yet. Refused if what the name of its VM is to begin with makes no name.
    pub fn new(client: Client, options: Options) -> Result<Self, Failure> {
        let random = VmId::new().simple();
        // The tail of a UUIDv7 is its random part.
        Self::with_id(client, &random[random.len() - 12..], options)
    }

    /// `id` names the session among the others.
    fn with_id(client: Client, id: &str, options: Options) -> Result<Self, Failure> {
        let Options { vm, mut create, at_end } = options;
        let name: VmName =
            format!("{}mcp-{id}", create.name).parse().map_err(|error: offshoot_types::InvalidName| {
                Failure::new(ErrorCode::InvalidArgument, "a session's VM cannot have its name")
                    .caused_by(&error)
            })?;
        create.name = name.to_string();
        create.start = true;
        create.wait = Some(true);
        create.labels.entry(LABEL.into()).or_insert_with(|| id.into());
        rests(create.life.get_or_insert_default());
        Ok(Self(Arc::new(Inner { client, vm, create, name, at_end, own: Mutex::new(Own::Unused) })))
    }

    /// As [`new`](Self::new), for a request that may begin the session: until [`begin`](Self::begin) it has no VM of its own,
    /// which nobody would end.
    pub fn not_begun(client: Client, options: Options) -> Result<Self, Failure> {
        let session = Self::new(client, options)?;
        *session.own() = Own::NotBegun;
        Ok(session)
    }

    /// From now on calls belong together.
    pub fn begin(&self) {
        let mut own = self.own();
        if matches!(&*own, Own::NotBegun) {
            *own = Own::Unused;
        }
    }

    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// What VMs are made with that an agent asks for; `None`: the default one.
    pub fn provider(&self) -> Option<String> {
        self.0.create.provider.clone()
    }

    /// What a tool without a VM would take now, if there is one.
    pub fn present_vm(&self) -> Option<VmRef> {
        match (&self.0.vm, &*self.own()) {
            (Some(vm), _) => Some(vm.clone()),
            (None, Own::Made(_) | Own::Doubted) => Some(self.name()),
            (None, Own::NotBegun | Own::Unused | Own::Over) => None,
        }
    }

    /// Whether nobody has asked for the session's own VM yet.
    pub fn is_unused(&self) -> bool {
        self.0.vm.is_none() && matches!(*self.own(), Own::Unused)
    }

    /// Whether the next tool that names no VM waits until it is made, or started.
    pub fn has_to_start(&self) -> bool {
        let runs = || matches!(&*self.own(), Own::Made(creation) if creation.peek().is_some());
        self.0.vm.is_none() && !runs()
    }

    /// The VM of a tool that names none; made on first use.
    pub async fn vm(&self) -> Result<VmRef, Failure> {
        if let Some(vm) = &self.0.vm {
            return Ok(vm.clone());
        }
        let creation = {
            let mut own = self.own();
            match &*own {
                Own::Made(creation) => creation.clone(),
                Own::Unused | Own::Doubted => {
                    let creation = make(self.0.clone()).boxed().shared();
                    *own = Own::Made(creation.clone());
                    creation
                }
                Own::NotBegun => return Err(not_begun()),
                Own::Over => return Err(over()),
            }
        };
        let made = creation.clone().await;
        if made.is_err() {
            let mut own = self.own();
            // The next call tries anew, unless one does already.
            if matches!(&*own, Own::Made(present) if present.ptr_eq(&creation)) {
                *own = Own::Doubted;
            }
        }
        made.map(|()| self.name())
    }

    /// Has the session's own VM looked after by the next call that needs it: it may have been stopped, or be gone.
    pub fn doubt(&self) {
        let mut own = self.own();
        if matches!(&*own, Own::Made(creation) if creation.peek().is_some()) {
            *own = Own::Doubted;
        }
    }

    /// Does with the session's own VM what is to be done with it at the end, and says with which. Nothing is made here
    /// any more.
    ///
    /// Whoever has little time does not `wait`: what is on record the daemon does without us.
    pub async fn end(&self, wait: bool) -> Result<Option<(VmName, AtEnd)>, Failure> {
        let own = std::mem::replace(&mut *self.own(), Own::Over);
        match own {
            Own::NotBegun | Own::Unused | Own::Over => return Ok(None),
            // One that failed may have got somewhere; what is not there is found out below.
            Own::Made(creation) => drop(creation.await),
            Own::Doubted => {}
        }
        let (vm, client) = (self.name(), &self.0.client);
        let change = Change { wait: Some(wait), ..Change::default() };
        let done = match self.0.at_end {
            AtEnd::Keep => Ok(()),
            AtEnd::Suspend => client.suspend(&vm, &change).await.map(drop),
            AtEnd::Stop => client.stop(&vm, &change).await.map(drop),
            AtEnd::Destroy => {
                let options = DestroyQuery { wait: Some(wait), ..DestroyQuery::default() };
                client.destroy(&vm, &options).await.map(drop)
            }
        };
        match done {
            Ok(()) => Ok(Some((self.0.name.clone(), self.0.at_end))),
            // Stopped or destroyed by somebody else before.
            Err(error) if matches!(error.code(), ErrorCode::WrongState | ErrorCode::NotFound) => Ok(None),
            Err(error) => Err(error.into_failure()),
        }
    }

    fn name(&self) -> VmRef {
        VmRef::Name(self.0.name.clone())
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_begun() -> Failure {
    Failure::new(
        ErrorCode::InvalidArgument,
        "the client has begun no session that could have a VM of its own",
    )
    .hint("name one in `vm` (`create_vm` makes one), or let the client begin with `initialize`")
}

fn over() -> Failure {
    Failure::new(ErrorCode::Unavailable, "the session is over").hint("begin a new one")
}

async fn make(session: Arc<Inner>) -> Result<(), Failure> {
    running(&session.client, &session.create).await.map_err(ClientError::into_failure)
}

/// Makes a VM that runs, or has the one by this name run, which is nobody else's.
pub async fn running(client: &Client, create: &CreateVm) -> Result<(), ClientError> {
    match client.create(create).await {
        Ok(_) => Ok(()),
        // By a call before.
        Err(error) if error.code() == ErrorCode::AlreadyExists => {
            let Ok(name) = create.name.parse() else { return Err(error) };
            let vm = VmRef::Name(name);
            let moved = match client.vm(&vm).await?.state {
                VmStateName::Running => return Ok(()),
                VmStateName::Paused | VmStateName::Suspended | VmStateName::Suspending => {
                    client.resume(&vm, &Change::default()).await
                }
                _ => client.start(&vm, &Change::default()).await,
            };
            moved.map(drop)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(options: Options) -> Session {
        Session::with_id(Client::new("/nonexistent/offshoot.sock"), "5f1e", options).unwrap()
    }

    #[test]
    fn the_vm_of_a_session_has_a_name_a_label_and_an_idle_limit() {
        let create = &session(Options::default()).0.create;
        assert_eq!(create.name, "mcp-5f1e");
        assert_eq!(create.labels[LABEL], "5f1e");
        let rests = |create: &CreateVm| {
            let life = create.life.clone().unwrap();
            (life.idle_suspend_ms, life.wake.unwrap())
        };
        assert_eq!(rests(create), (Some(600_000), "always".into()));
        for (life, expected) in [
            (SetLife { idle_suspend_ms: Some(0), ..SetLife::default() }, (Some(0), "always")),
            (SetLife { wake: Some("never".into()), ..SetLife::default() }, (Some(600_000), "never")),
        ] {
            let create = CreateVm { name: "ci-".into(), life: Some(life), ..CreateVm::default() };
            let create = session(Options { create, ..Options::default() }).0.create.clone();
            assert_eq!(
                (create.name.as_str(), rests(&create)),
                ("ci-mcp-5f1e", (expected.0, expected.1.into()))
            );
        }
    }

    #[tokio::test]
    async fn a_session_that_has_not_begun_makes_no_vm() {
        let client = Client::new("/nonexistent/offshoot.sock");
        let session = Session::not_begun(client, Options::default()).unwrap();
        assert_eq!(session.vm().await.unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!((session.present_vm(), session.end(true).await.unwrap()), (None, None));
        let client = Client::new("/nonexistent/offshoot.sock");
        let session = Session::not_begun(client, Options::default()).unwrap();
        session.begin();
        // It is tried now, and nobody is there.
        assert_eq!(session.vm().await.unwrap_err().code, ErrorCode::Unavailable);
    }

    #[test]
    fn a_beginning_that_makes_no_name_is_refused_and_names_differ() {
        let client = Client::new("/nonexistent/offshoot.sock");
        let options = || Options::default();
        let names = [(); 2].map(|()| Session::new(client.clone(), options()).unwrap().0.name.clone());
        assert_ne!(names[0], names[1]);
        let create = CreateVm { name: "A b".into(), ..CreateVm::default() };
        let refused = Session::new(client, Options { create, ..options() }).unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
    }

    #[tokio::test]
    async fn a_creation_that_failed_is_tried_anew_and_none_begins_after_the_end() {
        let session = session(Options::default());
        assert_eq!(session.vm().await.unwrap_err().code, ErrorCode::Unavailable);
        assert!(session.has_to_start() && !session.is_unused(), "the next call tries again");
        assert_eq!(session.vm().await.unwrap_err().code, ErrorCode::Unavailable);
        // It cannot be known what came of it, and that is said.
        assert_eq!(session.end(true).await.unwrap_err().code, ErrorCode::Unavailable);
        assert_eq!(session.end(true).await.unwrap(), None);
        assert!(session.vm().await.unwrap_err().message.contains("over"));
    }

    #[tokio::test]
    async fn a_given_vm_is_taken_and_left_alone() {
        let session = session(Options { vm: Some("web".parse().unwrap()), ..Options::default() });
        assert_eq!(session.vm().await.unwrap(), "web".parse().unwrap());
        assert!(!session.is_unused());
        assert_eq!(session.end(true).await.unwrap(), None);
    }

    #[test]
    fn the_words_for_the_end_are_read_as_they_are_written() {
        for end in AtEnd::ALL {
            assert_eq!(end.to_string().parse(), Ok(end));
        }
        assert!("kill".parse::<AtEnd>().is_err());
    }
}
