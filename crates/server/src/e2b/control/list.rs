//! Finding sandboxes.

use super::{
    asked::{Id, Query},
    error::{Refused, invalid},
    labels, view,
    wire::{ListedSandbox, SandboxDetail, State},
};
use crate::http::Call;
use axum::{
    Json,
    http::{HeaderMap, HeaderValue},
};
use jiff::Timestamp;
use offshoot_engine::VmView;
use offshoot_types::{Command, VmId};
use std::collections::BTreeMap;

const MAX_LIMIT: usize = 100;

/// Which of them are shown.
struct Filter {
    metadata: BTreeMap<String, String>,
    states: Vec<State>,
    template: Option<String>,
    started_after: Option<Timestamp>,
}

impl Filter {
    fn of(query: &Query) -> Result<Self, Refused> {
        let states = query.all("state").map(|text| match text {
            "running" => Ok(State::Running),
            "paused" => Ok(State::Paused),
            other => Err(invalid("state", format!("`{other:.40}` is neither running nor paused"))),
        });
        Ok(Self {
            metadata: query.get("metadata").map(metadata).transpose()?.unwrap_or_default(),
            states: states.collect::<Result<_, _>>()?,
            template: query.get("template").map(Into::into),
            started_after: query.parsed("startedAfter")?,
        })
    }

    fn passes(&self, vm: &VmView, listed: &ListedSandbox) -> bool {
        (self.states.is_empty() || self.states.contains(&listed.state))
            && self.metadata.iter().all(|(key, value)| labels::metadata(&vm.labels).get(key) == Some(value))
            && self
                .template
                .as_ref()
                .is_none_or(|wanted| listed.template == *wanted || listed.alias == *wanted)
            && self.started_after.is_none_or(|after| listed.started_at > after)
    }
}

/// `k=v&k2=v2`, of which the transport has undone one of two encodings.
fn metadata(text: &str) -> Result<BTreeMap<String, String>, Refused> {
    serde_urlencoded::from_str::<Vec<(String, String)>>(text)
        .map(|pairs| pairs.into_iter().collect())
        .map_err(|error| invalid("metadata", error))
}

pub async fn list(call: Call, query: Query) -> Result<(HeaderMap, Json<Vec<ListedSandbox>>), Refused> {
    let filter = Filter::of(&query)?;
    let limit = query.parsed("limit")?.unwrap_or(MAX_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(invalid("limit", format!("{limit} is not between 1 and {MAX_LIMIT}")));
    }
    let after: Option<VmId> = query.parsed("nextToken")?;
    let mut vms = call.engine.vms(call.permit(Command::Inspect { vm: None }).await?)?;
    // Ids say when they were made.
    vms.sort_by_key(|vm| vm.id);
    if query.get("order") != Some("asc") {
        vms.reverse();
    }
    let ascending = query.get("order") == Some("asc");
    let is_later = |vm: &VmView| after.is_none_or(|last| if ascending { vm.id > last } else { vm.id < last });
    let mut shown = vms.iter().filter(|vm| is_later(vm)).filter_map(|vm| {
        let listed = view::listed(vm, view::state(vm)?);
        filter.passes(vm, &listed).then_some((vm.id, listed))
    });
    let page: Vec<(VmId, ListedSandbox)> = shown.by_ref().take(limit).collect();
    let mut headers = HeaderMap::new();
    if let (true, Some((last, _))) = (shown.next().is_some(), page.last()) {
        let token = HeaderValue::from_str(&last.to_string()).expect("an id is ASCII");
        headers.insert("x-next-token", token);
    }
    Ok((headers, Json(page.into_iter().map(|(_, listed)| listed).collect())))
}

pub async fn show(call: Call, headers: HeaderMap, Id(id): Id) -> Result<Json<SandboxDetail>, Refused> {
    let vm = view::find(&call, &id).await?;
    Ok(Json(view::detail(&call, &headers, &vm).await?))
}
