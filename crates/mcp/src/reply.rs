//! What a tool answers, as a model reads it.

use offshoot_types::{ErrorCode, Failure};
use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::{Value, json};

/// A text to act on; the same as data; pictures.
#[derive(Debug, Default)]
pub struct Reply {
    text: String,
    data: Value,
    /// MIME type and base64.
    images: Vec<(String, String)>,
    failed: bool,
}

impl Reply {
    /// `data` is an object.
    pub fn new(text: impl Into<String>, data: Value) -> Self {
        Self { text: text.into(), data, ..Self::default() }
    }

    /// It did not come to what was asked for, and the text says so.
    pub fn failed(self) -> Self {
        Self { failed: true, ..self }
    }

    pub fn with_images(self, images: Vec<(String, String)>) -> Self {
        Self { images, ..self }
    }
}

impl From<Reply> for CallToolResult {
    fn from(reply: Reply) -> Self {
        let Reply { text, data, images, failed } = reply;
        let mut content = vec![ContentBlock::text(text)];
        content.extend(images.into_iter().map(|(mime, base64)| ContentBlock::image(base64, mime)));
        let mut result = match failed {
            true => Self::error(content),
            false => Self::success(content),
        };
        result.structured_content = Some(data);
        result
    }
}

/// A failure in words: what, why, and what to do.
impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        let Failure { code, message, cause, hint } = &failure;
        let mut text = format!("failed ({code}): {message}");
        if let Some(cause) = cause {
            text.push_str(&format!("\ncause: {cause}"));
        }
        if let Some(hint) = hint.as_deref().or(what_helps(*code)) {
            text.push_str(&format!("\nhint: {hint}"));
        }
        let data = json!({ "code": code, "message": message, "cause": cause, "hint": hint });
        Self::new(text, data).failed()
    }
}

/// What to do next, for failures that do not say so themselves, in terms of the tools.
const fn what_helps(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::NotFound => Some("`list_vms` shows the VMs, `list_files` the files of one"),
        ErrorCode::AlreadyExists => Some("choose another name"),
        ErrorCode::WrongState => Some("`list_vms` shows the states"),
        ErrorCode::Busy | ErrorCode::InTransaction => Some("wait for what is under way, then try again"),
        ErrorCode::Timeout => Some("give it a longer `timeout_seconds`, or do less at once"),
        ErrorCode::NoResource => Some("`stop_vm` what is no longer needed, or ask for less"),
        ErrorCode::Guest => Some("the VM's console says more: read the resource offshoot://vm/VM/console"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_an_error_of_the_tool_with_cause_and_hint() {
        let failure = Failure::new(ErrorCode::NotFound, "there is no VM `x`");
        let result = CallToolResult::from(Reply::from(failure));
        assert_eq!(result.is_error, Some(true));
        let text = serde_json::to_value(&result.content).unwrap()[0]["text"].as_str().unwrap().to_owned();
        assert!(text.starts_with("failed (not_found): there is no VM `x`\nhint: `list_vms`"), "{text}");
        assert_eq!(result.structured_content.unwrap()["code"], "not_found");
    }

    #[test]
    fn pictures_follow_the_text() {
        let reply = Reply::new("one", json!({})).with_images(vec![("image/png".into(), "aGk=".into())]);
        let result = serde_json::to_value(CallToolResult::from(reply)).unwrap();
        assert_eq!(result["content"][1]["type"], "image");
        assert_eq!(result["content"][1]["mimeType"], "image/png");
    }
}
