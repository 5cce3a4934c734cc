//! Where requests for sandboxes part from all others. One that names a sandbox never reaches the API behind.

use super::{
    access::{self, Signed, Way},
    address::{Address, ENVD, INTERPRETER},
    control, envd, interpreter,
    refusal::Refusal,
    sandbox::{DEFAULT_USER, Sandbox},
    token::Purpose,
};
use crate::{
    http::{App, Call, Caller, KeyEnds, glance},
    preview::{self, Admission, Dress, Front, NotForwarded, Origin, Way as Road},
};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use offshoot_policy::VmFacts;
use offshoot_types::{Actor, Command, ErrorCode, RequestId, Target, VmRef, VmStateName};
use tower_service::Service;

/// What is behind the router, port by port.
#[derive(Debug, Clone)]
pub struct Doors {
    app: App,
    envd: Router,
    interpreter: Router,
}

impl Doors {
    pub fn new(app: App) -> Self {
        let envd = envd::routes().with_state(app.clone());
        let interpreter = interpreter::routes().with_state(app.clone());
        Self { app, envd, interpreter }
    }
}

/// Hands a request to the sandbox it names, and on if it names none.
pub async fn route(State(doors): State<Doors>, request: Request, next: Next) -> Response {
    let address = Address::of(request.uri(), request.headers());
    let signed = (request.uri().path() == "/files").then(|| Signed::of(request.method(), request.uri()));
    let address = match (address, signed.flatten()) {
        (None, Some(signed)) => signed_for(&doors.app, &signed).await,
        (address, _) => address,
    };
    let Some(address) = address else { return next.run(request).await };
    match doors.answer(address, request).await {
        Ok(response) => response,
        Err(refusal) => {
            tracing::info!(?refusal, "request to a sandbox refused");
            refusal.into_response()
        }
    }
}

impl Doors {
    async fn answer(mut self, address: Address, request: Request) -> Result<Response, Refusal> {
        let Address { sandbox, port } = address;
        let gone = || Refusal::Gone { sandbox: sandbox.clone() };
        let vm = sandbox.parse().ok().and_then(|name| find(&self.app, VmRef::Name(name))).ok_or_else(gone)?;
        let id = vm.id;
        let port = port.ok_or_else(gone)?;
        let (mut parts, body) = request.into_parts();
        let (local, tls) = match parts.extensions.get::<Caller>() {
            Some(Caller::User { .. }) => (true, false),
            Some(Caller::Network { local, tls }) => (*local, *tls),
            None => (false, false),
        };
        let made_here = control::is_made_here(&vm.labels);
        let way = Way { vm: id, port, local, made_here, open: control::is_open(&vm.labels) };
        let mut visitor = None;
        let program = port != ENVD && port != INTERPRETER && !access::has_token(&parts.headers);
        if !access::may_pass(&self.app.tokens, way, &parts) || (program && preview::is_visit(&parts)) {
            let admission = match program {
                true => preview::admit(&self.app, &vm, port, tls, &parts),
                false => Admission::Nobody,
            };
            match admission {
                Admission::In { actor, origin, ends } => visitor = Some(Visitor { actor, origin, ends }),
                Admission::Visit(response) => return Ok(response),
                Admission::LinkOver => return Err(Refusal::LinkOver { sandbox, port }),
                Admission::Foreign => return Err(Refusal::Foreign { sandbox, port }),
                Admission::Refused(failure) => return Err(Refusal::Key(failure)),
                Admission::Nobody if access::has_expired(&self.app.tokens, way, &parts) => {
                    return Err(Refusal::Expired);
                }
                Admission::Nobody if program => return Err(Refusal::Private { sandbox, port }),
                Admission::Nobody => return Err(Refusal::Unauthorized),
            }
        }
        let opened = open(&self.app, vm, &parts)?;
        tracing::Span::current().record("actor", tracing::field::display(&opened.call.actor));
        let now = glance(&opened.call, VmRef::Id(id)).await.map_err(|_gone_meanwhile| gone())?;
        let answers = match now.state.name() {
            VmStateName::Running | VmStateName::Starting => true,
            // To ask whether it runs does not wake it.
            _ => now.wakes && !(port == ENVD && parts.uri.path() == "/health"),
        };
        if !answers {
            return Err(gone());
        }
        parts.extensions.insert(opened.clone());
        let request = Request::from_parts(parts, body);
        // A router is always ready, and never fails.
        let answered = match port {
            ENVD => self.envd.call(request).await,
            INTERPRETER => self.interpreter.call(request).await,
            port => return to_program(opened, visitor, port, request).await,
        };
        Ok(answered.unwrap_or_else(|never| match never {}))
    }
}

/// Who comes by host and shows no token of the VM.
struct Visitor {
    actor: Actor,
    origin: Origin,
    ends: Option<KeyEnds>,
}

/// Hands a request to the program at a port: as E2B's clients know it, or as a preview.
async fn to_program(
    opened: Sandbox,
    visitor: Option<Visitor>,
    port: u16,
    request: Request,
) -> Result<Response, Refusal> {
    let Sandbox { mut call, vm, name, .. } = opened;
    let (dress, ends) = match visitor {
        Some(Visitor { actor, origin, ends }) => {
            tracing::Span::current().record("actor", tracing::field::display(&actor));
            call.actor = actor;
            (Dress::Preview(Front { origin, prefix: String::new() }), ends)
        }
        None => (Dress::AsSent, None),
    };
    let road = Road { call: &call, vm: VmRef::Id(vm), port, dress: &dress, ends };
    preview::forward(road, request).await.map_err(|not| match (not, dress) {
        (NotForwarded::Denied(failure), Dress::Preview(_)) => Refusal::Key(failure),
        (NotForwarded::Denied(_), Dress::AsSent) => Refusal::Unauthorized,
        (NotForwarded::Gone(failure), _) => {
            tracing::info!(code = %failure.code, message = failure.message, "the sandbox could not be reached");
            Refusal::Gone { sandbox: name.to_string() }
        }
        (NotForwarded::Closed(failure), _) if failure.code == ErrorCode::NoResource => Refusal::Busy(failure),
        (NotForwarded::Closed(failure), _) => {
            tracing::info!(code = %failure.code, message = failure.message, "a program could not be reached");
            Refusal::PortClosed { sandbox: name.to_string(), port }
        }
    })
}

/// Links to signed files name no sandbox where one address serves all: it is the one whose token they are signed with.
async fn signed_for(app: &App, signed: &Signed) -> Option<Address> {
    let call = Call::new(app, Actor::Daemon, RequestId::new());
    let vms = call.engine.vms(call.permit(Command::Inspect { vm: None }).await.ok()?).ok()?;
    // Looked for to the end, whoever it is: how long it takes says nothing.
    let found = vms.iter().fold(None, |found, vm| {
        let signed = signed.is_by(&app.tokens.of(vm.id, Purpose::Access));
        if signed { Some(vm) } else { found }
    })?;
    Some(Address { sandbox: found.name.to_string(), port: Some(ENVD) })
}

/// A VM of the only owner there is.
fn find(app: &App, vm: VmRef) -> Option<VmFacts> {
    app.engine.facts(&Actor::Daemon, &Target::Vm(vm)).vm
}

fn open(app: &App, vm: VmFacts, parts: &Parts) -> Result<Sandbox, Refusal> {
    // What is open without a token is open for the default user: a signature says for whom it holds in the query.
    let user = match access::has_token(&parts.headers) {
        true => user(&parts.headers)?,
        false => DEFAULT_USER.into(),
    };
    let id = parts.extensions.get::<RequestId>().copied().unwrap_or_else(RequestId::new);
    let call = Call::new(app, Actor::Sandbox { vm: vm.id, owner: vm.owner }, id);
    Ok(Sandbox { call, vm: vm.id, name: vm.name, user })
}

/// Whom `Authorization: Basic` names; there is no password.
fn user(headers: &HeaderMap) -> Result<String, Refusal> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(DEFAULT_USER.into()) };
    let encoded = value.to_str().ok().and_then(|text| text.strip_prefix("Basic "));
    // Another scheme is for the program behind a port, not for us.
    let Some(encoded) = encoded else { return Ok(DEFAULT_USER.into()) };
    let decoded = STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|text| text.split(':').next()) {
        None => Err(Refusal::Unauthorized),
        Some("") => Ok(DEFAULT_USER.into()),
        Some(user) => Ok(user.into()),
    }
}
