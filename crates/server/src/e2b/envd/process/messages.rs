//! The service's messages.

use crate::e2b::envd::connect::{base64_bytes, null_is_default, number};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use offshoot_engine::ExecView;
use offshoot_types::{ExecArgv, PtySize};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;

#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
pub struct Empty {}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StartRequest {
    pub process: Option<ProcessConfig>,
    pub pty: Option<Pty>,
    pub tag: Option<String>,
    /// Absent as of old: open.
    pub stdin: Option<bool>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ProcessConfig {
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: String,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pty {
    size: Option<Size>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Size {
    #[serde(deserialize_with = "number")]
    cols: Option<u32>,
    #[serde(deserialize_with = "number")]
    rows: Option<u32>,
}

impl Pty {
    /// `None` if it is not one that a terminal can have.
    pub fn size(&self) -> Option<PtySize> {
        let size = self.size.as_ref()?;
        let side = |side: Option<u32>| u16::try_from(side?).ok().filter(|&side| side > 0);
        Some(PtySize { rows: side(size.rows)?, cols: side(size.cols)? })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConnectRequest {
    pub process: Option<Selector>,
    /// From as far back as the guest remembers.
    #[serde(deserialize_with = "null_is_default")]
    pub replay: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Selector {
    #[serde(deserialize_with = "number")]
    pub pid: Option<u32>,
    pub tag: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SendInputRequest {
    pub process: Option<Selector>,
    pub input: Option<Input>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Input {
    #[serde(deserialize_with = "base64_bytes")]
    pub stdin: Option<Vec<u8>>,
    #[serde(deserialize_with = "base64_bytes")]
    pub pty: Option<Vec<u8>>,
}

/// One of a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamInputRequest {
    pub start: Option<ProcessRequest>,
    pub data: Option<InputData>,
    pub keepalive: Option<Empty>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct InputData {
    pub input: Option<Input>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProcessRequest {
    pub process: Option<Selector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SendSignalRequest {
    pub process: Option<Selector>,
    pub signal: Option<Signal>,
}

/// By name or number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Signal {
    Number(i32),
    Name(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct UpdateRequest {
    pub process: Option<Selector>,
    pub pty: Option<Pty>,
}

#[derive(Debug, Serialize)]
pub struct ListResponse {
    processes: Vec<ProcessInfo>,
}

#[derive(Debug, Serialize)]
struct ProcessInfo {
    config: ProcessConfig,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

impl From<Vec<ExecView>> for ListResponse {
    fn from(views: Vec<ExecView>) -> Self {
        let info = |view: ExecView| {
            let spec = view.spec;
            let mut words = match spec.argv {
                ExecArgv::Argv(argv) => argv.into_iter(),
                ExecArgv::Shell(script) => vec!["/bin/bash".into(), "-c".into(), script].into_iter(),
            };
            let cmd = words.next().unwrap_or_default();
            let config = ProcessConfig { cmd, args: words.collect(), envs: spec.env, cwd: spec.cwd };
            // Without a pid it has not begun.
            Some(ProcessInfo { config, pid: view.pid?, tag: spec.tag })
        };
        // Oldest first, as they were started.
        Self { processes: views.into_iter().rev().filter_map(info).collect() }
    }
}

/// What `Start` and `Connect` answer, again and again.
#[derive(Debug, Serialize)]
pub struct EventResponse {
    pub event: Event,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    Start { pid: u32 },
    Data(Data),
    Keepalive {},
    End(End),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Data {
    Stdout(#[serde(serialize_with = "as_base64")] Bytes),
    Stderr(#[serde(serialize_with = "as_base64")] Bytes),
    Pty(#[serde(serialize_with = "as_base64")] Bytes),
}

fn as_base64<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(data))
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    pub exit_code: i32,
    /// By itself, rather than by a signal.
    pub exited: bool,
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<Event> for EventResponse {
    fn from(event: Event) -> Self {
        Self { event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_told_in_the_words_of_the_wire() {
        let told = |event: Event| serde_json::to_value(EventResponse::from(event)).unwrap();
        assert_eq!(told(Event::Start { pid: 7 }), json!({ "event": { "start": { "pid": 7 } } }));
        let data = told(Event::Data(Data::Stdout(Bytes::from_static(b"hi\n"))));
        assert_eq!(data, json!({ "event": { "data": { "stdout": "aGkK" } } }));
        assert_eq!(told(Event::Keepalive {}), json!({ "event": { "keepalive": {} } }));
        let end = End { exit_code: 0, exited: true, status: "exit status 0".into(), error: None };
        let expected =
            json!({ "event": { "end": { "exitCode": 0, "exited": true, "status": "exit status 0" } } });
        assert_eq!(told(Event::End(end)), expected);
    }

    #[test]
    fn a_terminal_has_rows_and_columns() {
        let size = |value| serde_json::from_value::<Pty>(value).unwrap().size();
        assert_eq!(size(json!({ "size": { "cols": 80, "rows": 24 } })), Some(PtySize { rows: 24, cols: 80 }));
        for none in [json!({}), json!({ "size": {} }), json!({ "size": { "cols": 0, "rows": 1 } })] {
            assert_eq!(size(none.clone()), None, "{none}");
        }
        assert_eq!(size(json!({ "size": { "cols": 70000, "rows": 1 } })), None);
    }
}
