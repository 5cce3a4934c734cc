//! What may leave a sandbox: nothing yet, so that rules which would allow some of it are refused, not forgotten.

use super::{
    asked::{Asked, Id},
    error::{Refused, invalid},
    view,
    wire::Network,
};
use crate::http::Call;
use axum::http::StatusCode;
use std::sync::Once;

/// Refuses what would have to hold and does not. To be allowed everything is accepted, with a warning.
pub fn check(internet: Option<bool>, network: Option<&Network>) -> Result<(), Refused> {
    static WARNED: Once = Once::new();
    let wanted = internet.or_else(|| network.and_then(|network| network.internet));
    if wanted == Some(true) {
        WARNED.call_once(|| {
            tracing::warn!(
                "a sandbox was to reach the internet: none can yet; `allowInternetAccess` of each says false"
            );
        });
    }
    let Some(network) = network else { return Ok(()) };
    let filled = |list: &Option<Vec<serde_json::Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let given = |value: &Option<serde_json::Value>| value.as_ref().is_some_and(|value| !value.is_null());
    let rules = [
        ("network.allowOut", filled(&network.allow_out)),
        ("network.denyOut", filled(&network.deny_out)),
        ("network.dnsServers", filled(&network.dns_servers)),
        ("network.egressProxy", given(&network.egress_proxy)),
        ("network.maskRequestHost", given(&network.mask_request_host)),
        ("network.httpsPorts", filled(&network.https_ports)),
        ("network.rules", network.rules.as_ref().is_some_and(|rules| !rules.is_empty())),
    ];
    match rules.into_iter().find(|(_, set)| *set) {
        Some((field, _)) => {
            Err(invalid(field, "there are no rules for what leaves a sandbox yet: nothing does"))
        }
        None => Ok(()),
    }
}

pub async fn update(call: Call, Id(id): Id, Asked(request): Asked<Network>) -> Result<StatusCode, Refused> {
    view::find(&call, &id).await?;
    check(None, Some(&request))?;
    Ok(StatusCode::NO_CONTENT)
}
