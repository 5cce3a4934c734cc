//! Live contexts: interpreters that keep their variables from one piece of code to the next.
//!
//! ```text
//! client                                         server
//!   text  CodeRequest                         ->            first frame
//!                                             <-  text  {"event":"started",..}
//!   text  CodeInput                           <-> binary 1 stdout.. | 2 stderr.. | text {"event":"display"|"value"|"error",..}
//!                                             <-  text  {"event":"ended"|"failed",..}, then close
//! ```
//! A socket that closes before `ended` interrupts the code; the interpreter and its variables stay.

use super::{
    ErrorBody, InvalidField,
    exec::{check_env, check_user},
    invalid::parse,
    schema,
};
use offshoot_types::{ContextCode, ContextName, Language};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use utoipa::ToSchema;

/// Largest piece of code, in bytes: what still fits one message to the guest.
const MAX_CODE: usize = 256 * 1024;
/// Largest environment of a context, or of one piece of code: names and values.
const MAX_ENV: usize = 64 * 1024;
/// Largest text frame from the server: what a value shows is at most 4.25 MiB, and JSON may write a byte as six.
pub const MAX_CODE_MESSAGE: usize = 32 * 1024 * 1024;

/// First text frame: code for a context, which is made on first use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeRequest {
    /// `^[a-z0-9][a-z0-9_-]{0,62}$`, unique per VM.
    pub context: String,
    /// `python`, `javascript` or `bash`. If absent that of the context, and python for a new one; another than the
    /// context's own is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    pub code: String,
    /// After this the code is interrupted; variables survive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Who a new context runs as, a name or numeric uid inside the VM; `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where a new context starts. Absolute; the user's home directory if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What the interpreter of a new context has in its environment, besides the user's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context_env: BTreeMap<String, String>,
    /// What this code alone has in its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Refused (`not-found`) where there is no such context yet.
    #[serde(default, skip_serializing_if = "is_false")]
    pub existing: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn check_environment(field: &'static str, env: &BTreeMap<String, String>) -> Result<(), InvalidField> {
    check_env(field, env)?;
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    match bytes {
        0..=MAX_ENV => Ok(()),
        _ => Err(InvalidField::new(field, format!("{bytes} bytes exceed {MAX_ENV}"))),
    }
}

impl TryFrom<CodeRequest> for ContextCode {
    type Error = InvalidField;
    fn try_from(wire: CodeRequest) -> Result<Self, InvalidField> {
        if wire.code.len() > MAX_CODE {
            let problem =
                format!("{} bytes exceed {MAX_CODE}; put it into a file of the VM", wire.code.len());
            return Err(InvalidField::new("code", problem));
        }
        if wire.timeout_ms == Some(0) {
            return Err(InvalidField::new("timeout_ms", "0 allows nothing at all; leave it out"));
        }
        if let Some(cwd) = &wire.cwd {
            super::absolute_path("cwd", cwd)?;
        }
        check_environment("context_env", &wire.context_env)?;
        check_environment("env", &wire.env)?;
        let user = wire.user.unwrap_or_else(|| "root".into());
        check_user("user", &user)?;
        Ok(Self {
            context: parse("context", &wire.context)?,
            language: wire.language.as_deref().map(|text| parse("language", text)).transpose()?,
            code: wire.code,
            timeout: wire.timeout_ms.map(Duration::from_millis),
            user,
            cwd: wire.cwd,
            context_env: wire.context_env,
            env: wire.env,
            existing: wire.existing,
        })
    }
}

/// Text frames from the client, after the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CodeInput {
    /// As Ctrl-C would; variables survive.
    Interrupt,
}

/// Text frames from the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum CodeMessage {
    /// The interpreter has the code.
    Started {
        #[schema(schema_with = schema::language)]
        language: Language,
        /// Of the interpreter, inside the guest.
        pid: u32,
        /// It was made for this request.
        created: bool,
        /// Pieces of code it was given, this one included.
        #[serde(default)]
        count: u32,
    },
    /// Shown by the code on its way: figures, and what it says to display.
    Display {
        /// By MIME type, `text/plain` always among them; what is binary in base64.
        mime: BTreeMap<String, String>,
        /// Names it, so that it can be shown anew.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        /// It takes the place of what was shown by that name.
        update: bool,
    },
    /// Of the last expression, if it has one worth showing; by MIME type, `text/plain` always among them.
    Value { mime: BTreeMap<String, String> },
    /// The code ended with an uncaught error.
    Error { name: String, message: String, traceback: String },
    /// The last message.
    Ended {
        /// By the time limit, by request, or because the caller left.
        interrupted: bool,
        /// As measured inside the guest, in microseconds.
        wall_us: u64,
    },
    /// The last message: it did not run, or how it ended cannot be told.
    Failed { error: ErrorBody },
}

/// An interpreter that lives in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LiveContext {
    #[schema(value_type = String)]
    pub context: ContextName,
    #[schema(schema_with = schema::language)]
    pub language: Language,
    /// Inside the guest; absent while there is no interpreter: it has died, or the VM does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// It runs code now.
    pub busy: bool,
    /// Who it runs as. Absent while the VM does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where it started. Absent while the VM does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// By the guest's clock.
    pub age_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextList {
    pub contexts: Vec<LiveContext>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_names_its_context_and_every_bad_field_is_named() {
        let good = CodeRequest { context: "a".into(), code: "1".into(), ..CodeRequest::default() };
        let code = ContextCode::try_from(good.clone()).unwrap();
        assert_eq!((code.user.as_str(), code.language), ("root", None));
        let js = CodeRequest { language: Some("js".into()), ..good.clone() };
        assert_eq!(ContextCode::try_from(js).unwrap().language, Some(Language::Javascript));
        let refused = |wire: CodeRequest| ContextCode::try_from(wire).unwrap_err().field;
        assert_eq!(refused(CodeRequest { context: "A b".into(), ..good.clone() }), "context");
        assert_eq!(refused(CodeRequest { language: Some("cobol".into()), ..good.clone() }), "language");
        assert_eq!(refused(CodeRequest { timeout_ms: Some(0), ..good.clone() }), "timeout_ms");
        assert_eq!(refused(CodeRequest { user: Some("a:b".into()), ..good.clone() }), "user");
        let odd = [("A=B".to_owned(), String::new())].into();
        assert_eq!(refused(CodeRequest { env: odd, ..good.clone() }), "env");
        let large = [("A".to_owned(), "x".repeat(MAX_ENV))].into();
        assert_eq!(refused(CodeRequest { context_env: large, ..good.clone() }), "context_env");
        assert_eq!(refused(CodeRequest { cwd: Some("tmp".into()), ..good.clone() }), "cwd");
        assert_eq!(refused(CodeRequest { code: "x".repeat(MAX_CODE + 1), ..good }), "code");
    }

    #[test]
    fn text_frames_have_the_documented_form() {
        assert_eq!(serde_json::to_string(&CodeInput::Interrupt).unwrap(), r#"{"type":"interrupt"}"#);
        let started = CodeMessage::Started { language: Language::Python, pid: 7, created: true, count: 1 };
        assert_eq!(
            serde_json::to_string(&started).unwrap(),
            r#"{"event":"started","language":"python","pid":7,"created":true,"count":1}"#
        );
    }
}
