//! The server of one session, whatever carries its messages.
//!
//! ```text
//! tools/list, tools/call --> tools        resources/* --> resources        notifications/cancelled --> Call::cancelled
//! ```

// The protocol's logging is on its way out of it. It is how a client learns what became of a call that it cancelled.
#![expect(deprecated, reason = "there is nothing else yet by which a cancelled call could be told of")]

use crate::{call::Call, reply::Reply, resources, session::Session, tools};
use offshoot_types::{ErrorCode, Failure};
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, Implementation, InitializeResult,
        ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, LoggingLevel,
        LoggingMessageNotificationParam, PaginatedRequestParams, ProtocolVersion, ReadResourceRequestParams,
        ReadResourceResponse, ReadResourceResult, ServerCapabilities, SetLevelRequestParams, Tool,
    },
    service::RequestContext,
};
use serde_json::json;
use std::borrow::Cow;

const INSTRUCTIONS: &str = "\
Offshoot gives you a computer of your own: a virtual machine without network, in which you can run code and commands, \
keep files, and go back to any state you kept. A tool called without `vm` uses this session's own VM, which is made on \
first use; programs run there as `user` with home /home/user. \
`run_code` keeps variables from call to call; `exec` runs shell commands. \
Before something risky take a `snapshot`, then `rollback` if it went wrong, or use `try`, which undoes a command that \
fails. `fork` gives you copies to try several ways at once; `diff` says what changed. \
Answers say so when something was left out of them, and how to get it.";

#[derive(Debug, Clone)]
pub struct Server {
    session: Session,
    versions: &'static [ProtocolVersion],
}

impl Server {
    /// For a transport that is the session: it begins and ends with it.
    pub fn new(session: Session) -> Self {
        Self { session, versions: ProtocolVersion::KNOWN_VERSIONS }
    }

    /// For a transport on which sessions are named, so that calls are known to belong together. Versions of the protocol
    /// without sessions are not spoken there: a session's own VM would be made for each call.
    pub fn named(session: Session) -> Self {
        Self { session, versions: ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25) }
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    async fn answer(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Option<Reply> {
        let (peer, CallToolRequestParams { name, arguments, .. }) = (context.peer.clone(), request);
        let call = Call::new(self.session.clone(), context);
        let failure = match tools::call(&name, &call, arguments.unwrap_or_default())?.await {
            Ok(reply) => return Some(reply),
            Err(failure) => failure,
        };
        if call.is_cancelled() {
            tracing::info!(tool = %name, message = failure.message, "a call was cancelled");
            let what = json!({ "tool": name, "message": failure.message });
            let message =
                LoggingMessageNotificationParam::new(LoggingLevel::Notice, what).with_logger("offshoot");
            // A client that has gone misses nothing it would read.
            let _gone = peer.notify_logging_message(message).await;
        }
        Some(self.explained(&call, failure).into())
    }

    /// A failure of a call for the session's own VM has that looked after by the next one: it may be stopped, or gone.
    fn explained(&self, call: &Call, failure: Failure) -> Failure {
        if !call.is_of_own() || !matches!(failure.code, ErrorCode::WrongState | ErrorCode::NotFound) {
            return failure;
        }
        self.session.doubt();
        match failure.code {
            ErrorCode::WrongState => {
                failure.hint("the next call without `vm` starts this session's VM again")
            }
            _ => failure,
        }
    }
}

fn refused(failure: Failure) -> ErrorData {
    let Failure { code, message, cause, hint } = &failure;
    let data = Some(json!({ "code": code, "cause": cause, "hint": hint }));
    match code {
        ErrorCode::NotFound => ErrorData::resource_not_found(message.clone(), data),
        ErrorCode::InvalidArgument => ErrorData::invalid_params(message.clone(), data),
        _ => ErrorData::internal_error(message.clone(), data),
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> InitializeResult {
        let capabilities =
            ServerCapabilities::builder().enable_tools().enable_resources().enable_logging().build();
        let implementation =
            Implementation::new("offshoot", env!("CARGO_PKG_VERSION")).with_title("Offshoot");
        InitializeResult::new(capabilities).with_server_info(implementation).with_instructions(INSTRUCTIONS)
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(self.versions)
    }

    /// All there is to say is said to everybody: there is one level.
    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools::get(name)
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = request.name.clone();
        match self.answer(request, context).await {
            Some(reply) => Ok(CallToolResult::from(reply).into()),
            None => Err(ErrorData::invalid_params(format!("there is no tool `{name:.60}`"), None)),
        }
    }

    async fn list_resources(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        let resources = resources::list(self.session.client()).await.map_err(refused)?;
        Ok(ListResourcesResult::with_all_items(resources))
    }

    async fn list_resource_templates(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(resources::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let contents = resources::read(self.session.client(), &request.uri).await.map_err(refused)?;
        Ok(ReadResourceResult::new(vec![contents]).into())
    }
}
