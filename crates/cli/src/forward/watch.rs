//! Whether the VM is still the one whose ports are forwarded.
//!
//! Its moves are read in order from the log of events, so that a stop and a start between two looks are not missed.

use crate::failure::Result;
use offshoot_api::{
    Client, ClientError,
    v1::{Event, EventDetail, EventQuery},
};
use offshoot_types::{ErrorCode, Failure, VmId, VmName, VmRef, VmStateName};
use std::time::Duration;

/// One long poll.
const POLL_MS: u64 = 30_000;
/// After one that was refused for now.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Watch {
    vm: VmId,
    name: VmName,
    /// The last event before the VM was seen.
    after: u64,
}

impl Watch {
    /// Fails unless the VM is one whose ports can be reached, now or once it goes on.
    pub async fn begin(client: &Client, vm: &VmRef) -> Result<Self> {
        let mut query = EventQuery::default();
        loop {
            let page = client.events(&query).await?;
            if page.events.is_empty() {
                break;
            }
            query.after = page.next_after;
        }
        let found = client.vm(vm).await?;
        let watch = Self { vm: found.id, name: found.name, after: query.after };
        match found.state {
            VmStateName::Starting
            | VmStateName::Running
            | VmStateName::Paused
            | VmStateName::Suspending
            | VmStateName::Suspended
            | VmStateName::Migrating => Ok(watch),
            VmStateName::Creating
            | VmStateName::Stopped
            | VmStateName::Stopping
            | VmStateName::Failed
            | VmStateName::Destroyed => {
                let name = &watch.name;
                let message = format!("VM `{name}` is {}: nothing in it can be reached", found.state);
                Err(Failure::new(ErrorCode::WrongState, message)
                    .hint(format!("`offshoot start {name}` starts it"))
                    .into())
            }
        }
    }

    pub fn vm(&self) -> VmId {
        self.vm
    }

    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// Returns why the VM is no longer the one it was.
    pub async fn ended(&self, client: &Client) -> Result<Failure> {
        let mut query = EventQuery { after: self.after, wait_ms: Some(POLL_MS), limit: None };
        loop {
            let page = match client.events(&query).await {
                Ok(page) => page,
                // The daemon has too much to do just now: that is no end of the VM.
                Err(ClientError::Api(body)) if body.retryable => {
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            query.after = page.next_after;
            if let Some(end) = page.events.iter().find_map(|event| self.end(event)) {
                return Ok(end);
            }
        }
    }

    fn end(&self, event: &Event) -> Option<Failure> {
        if event.vm != Some(self.vm) {
            return None;
        }
        let name = &self.name;
        let over = |code, what: &str, hint: String| {
            let message = format!("VM `{name}` {what}: its ports are no longer forwarded");
            Some(Failure::new(code, message).hint(hint))
        };
        match &event.detail {
            // What is stopping may be on its way to being destroyed.
            EventDetail::StateChanged { to: VmStateName::Stopped, .. } => over(
                ErrorCode::WrongState,
                "was stopped",
                format!("`offshoot start {name}`, then forward them again"),
            ),
            EventDetail::StateChanged { to: VmStateName::Failed, .. } => {
                over(ErrorCode::WrongState, "has failed", format!("`offshoot status {name}` shows why"))
            }
            EventDetail::StateChanged { to: VmStateName::Destroyed, .. } => {
                over(ErrorCode::NotFound, "was destroyed", "`offshoot list` shows the VMs there are".into())
            }
            EventDetail::RolledBack { .. } => over(
                ErrorCode::WrongState,
                "was rolled back",
                "what they led to is the state it has left; forward them again to reach the present one"
                    .into(),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::Generation;
    use serde_json::json;

    fn event(vm: VmId, detail: serde_json::Value) -> Event {
        let mut event =
            json!({ "id": 1, "at": "2026-01-01T00:00:00Z", "owner": "local", "vm": vm, "actor": "uid:0" });
        event.as_object_mut().unwrap().extend(detail.as_object().unwrap().clone());
        serde_json::from_value(event).unwrap()
    }

    #[test]
    fn forwarding_ends_with_the_state_it_led_to_and_with_no_other() {
        let vm = VmId::new();
        let watch = Watch { vm, name: "web".parse().unwrap(), after: 0 };
        let moved = |to: &str| json!({ "event": "state-changed", "to": to, "generation": Generation(2), "reason": "asked" });
        let code = |of, detail| watch.end(&event(of, detail)).map(|end| end.code);
        assert_eq!(code(vm, moved("stopped")), Some(ErrorCode::WrongState));
        assert_eq!(code(vm, moved("failed")), Some(ErrorCode::WrongState));
        assert_eq!(code(vm, moved("destroyed")), Some(ErrorCode::NotFound));
        let to = offshoot_types::SnapshotId::new();
        let back = json!({ "event": "rolled-back", "to": to, "generation": Generation(3) });
        assert_eq!(code(vm, back.clone()), Some(ErrorCode::WrongState));
        for goes_on in ["running", "paused", "suspending", "suspended", "stopping", "starting"] {
            assert_eq!(code(vm, moved(goes_on)), None, "{goes_on}");
        }
        let moved_on = json!({ "event": "rebased", "onto": to, "generation": Generation(3) });
        assert_eq!(code(vm, moved_on), None);
        assert_eq!(code(VmId::new(), moved("stopped")), None, "another's");
        assert_eq!(code(VmId::new(), back), None, "another's");
    }
}
