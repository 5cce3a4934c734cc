//! The tools, one struct of arguments each.

mod attempt;
mod code;
mod compare;
mod exec;
mod files;
mod limits;
mod output;
mod states;
mod vms;

use crate::{call::Call, reply::Reply};
use futures::{FutureExt, future::BoxFuture};
use offshoot_types::{ErrorCode, Failure};
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::LazyLock;

/// What a tool may do to its VM. None reaches further: a VM has no network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    /// Makes something new, each time.
    Adds,
    /// May overwrite or end something.
    Changes,
    /// The same, and a second time nothing more.
    ChangesOnce,
}

impl Effect {
    fn annotations(self, title: &str) -> ToolAnnotations {
        let hints = ToolAnnotations::with_title(title).open_world(false).read_only(self == Self::Reads);
        match self {
            Self::Reads => hints,
            Self::Adds => hints.destructive(false).idempotent(false),
            Self::Changes => hints.destructive(true).idempotent(false),
            Self::ChangesOnce => hints.destructive(true).idempotent(true),
        }
    }
}

/// The arguments of one tool, and what it does with them.
trait Arguments: DeserializeOwned + JsonSchema + Send + 'static {
    const NAME: &'static str;
    const TITLE: &'static str;
    const DESCRIPTION: &'static str;
    const EFFECT: Effect;

    fn perform(self, call: &Call) -> impl Future<Output = Result<Reply, Failure>> + Send;
}

type Perform = for<'a> fn(&'a Call, JsonObject) -> BoxFuture<'a, Result<Reply, Failure>>;

struct Entry {
    tool: Tool,
    perform: Perform,
}

fn entry<A: Arguments>() -> Entry {
    let tool = Tool::new(A::NAME, A::DESCRIPTION, JsonObject::new())
        .with_title(A::TITLE)
        .with_input_schema::<A>()
        .annotate(A::EFFECT.annotations(A::TITLE));
    Entry { tool, perform: |call, arguments| perform::<A>(call, arguments).boxed() }
}

async fn perform<A: Arguments>(call: &Call, arguments: JsonObject) -> Result<Reply, Failure> {
    let arguments: A = serde_json::from_value(Value::Object(arguments)).map_err(|error| {
        Failure::new(ErrorCode::InvalidArgument, format!("these are no arguments of `{}`: {error}", A::NAME))
            .hint("the tool's input schema says what it takes")
    })?;
    arguments.perform(call).await
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    vec![
        entry::<code::RunCode>(),
        entry::<exec::Exec>(),
        entry::<files::ReadFile>(),
        entry::<files::WriteFile>(),
        entry::<files::ListFiles>(),
        entry::<states::TakeSnapshot>(),
        entry::<states::Fork>(),
        entry::<states::Rollback>(),
        entry::<attempt::Try>(),
        entry::<compare::Diff>(),
        entry::<vms::CreateVm>(),
        entry::<vms::ListVms>(),
        entry::<vms::StopVm>(),
    ]
});

/// What clients are told of them.
pub fn all() -> Vec<Tool> {
    ENTRIES.iter().map(|entry| entry.tool.clone()).collect()
}

pub fn get(name: &str) -> Option<Tool> {
    ENTRIES.iter().find(|entry| entry.tool.name == name).map(|entry| entry.tool.clone())
}

/// Their names, in the order in which they are listed.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().map(|entry| &*entry.tool.name)
}

/// Calls one. `None`: there is no such tool.
pub fn call<'a>(
    name: &str,
    call: &'a Call,
    arguments: JsonObject,
) -> Option<BoxFuture<'a, Result<Reply, Failure>>> {
    let entry = ENTRIES.iter().find(|entry| entry.tool.name == name)?;
    Some((entry.perform)(call, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_and_argument_is_described() {
        for tool in all() {
            let name = &tool.name;
            assert!(tool.description.as_ref().is_some_and(|text| text.len() > 40), "{name}");
            assert_eq!(tool.input_schema["additionalProperties"], false, "{name} takes what nobody reads");
            let properties = tool.input_schema.get("properties").and_then(Value::as_object);
            for (argument, schema) in properties.into_iter().flatten() {
                assert!(schema.get("description").is_some(), "{name}.{argument} has no description");
            }
        }
    }

    #[test]
    fn the_tools_are_these_and_say_what_they_may_do() {
        let told: Vec<String> = all()
            .iter()
            .map(|tool| {
                let hints = tool.annotations.as_ref().unwrap();
                let effect = match (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint) {
                    (Some(true), ..) => "reads",
                    (_, Some(false), _) => "adds",
                    (_, _, Some(true)) => "changes once",
                    _ => "changes",
                };
                format!("{}: {effect}", tool.name)
            })
            .collect();
        let expected = [
            "run_code: changes",
            "exec: changes",
            "read_file: reads",
            "write_file: changes once",
            "list_files: reads",
            "snapshot: adds",
            "fork: adds",
            "rollback: changes once",
            "try: changes",
            "diff: reads",
            "create_vm: adds",
            "list_vms: reads",
            "stop_vm: changes once",
        ];
        assert_eq!(told, expected);
    }
}
