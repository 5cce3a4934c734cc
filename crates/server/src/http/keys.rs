//! API keys: make, list, remove.

use super::{
    error::{ApiError, KeyErrors, ReadErrors},
    extract::{Json, KeyPath, Query},
    once::Secret,
    request::Call,
};
use axum::Extension;
use jiff::Timestamp;
use offshoot_api::v1::{CreateKey, Key, KeyCreated, KeyList, KeysRemoved, NewKey, PageQuery};
use offshoot_engine::KeyView;
use offshoot_types::{Command, KeyLimits};

/// Make a key. Its secret is in this answer and nowhere else. What is not limited is as the maker's.
#[utoipa::path(post, path = "/v1/keys", tag = "keys", operation_id = "create_key", request_body = CreateKey,
    responses((status = 200, body = KeyCreated), KeyErrors))]
pub async fn create(
    call: Call,
    Json(request): Json<CreateKey>,
) -> Result<(Extension<Secret>, axum::Json<KeyCreated>), ApiError> {
    let NewKey { name, scopes, vm_prefix, provider, max_vms, rate, ttl } = request.try_into()?;
    // What is not said is what the maker has.
    let own = call.engine.key_limits(&call.actor).unwrap_or(KeyLimits::NONE);
    let wanted = ttl.and_then(|ttl| Timestamp::now().checked_add(ttl).ok());
    let limits = KeyLimits {
        scopes: scopes.unwrap_or(own.scopes),
        vm_prefix: vm_prefix.or(own.vm_prefix),
        provider: provider.or(own.provider),
        max_vms: max_vms.or(own.max_vms),
        rate: rate.or(own.rate),
        expires: wanted.or(own.expires),
    };
    let permit = call.permit(Command::CreateKey { name, limits: Box::new(limits) }).await?;
    let made = call.until_cut(call.engine.create_key(permit)).await?;
    let created = KeyCreated { key: made.secret, details: wire(made.key) };
    Ok((Extension(Secret), axum::Json(created)))
}

/// All keys, oldest first.
#[utoipa::path(get, path = "/v1/keys", tag = "keys", operation_id = "list_keys",
    params(PageQuery), responses((status = 200, body = KeyList), ReadErrors))]
pub async fn list(call: Call, Query(page): Query<PageQuery>) -> Result<axum::Json<KeyList>, ApiError> {
    let keys = call.engine.keys(call.permit(Command::ListKeys).await?)?;
    let (keys, next_cursor) = page.of(keys, |key| key.id.to_string())?;
    Ok(axum::Json(KeyList { keys: keys.into_iter().map(wire).collect(), next_cursor }))
}

/// Remove a key, and those that were made with it. VMs that were made with them stay.
#[utoipa::path(delete, path = "/v1/keys/{key}", tag = "keys", operation_id = "remove_key",
    params(("key" = String, Path, description = "Id")),
    responses((status = 200, body = KeysRemoved), KeyErrors))]
pub async fn remove(call: Call, KeyPath(key): KeyPath) -> Result<axum::Json<KeysRemoved>, ApiError> {
    let permit = call.permit(Command::RemoveKey { key }).await?;
    let removed = call.until_cut(call.engine.remove_key(permit)).await?;
    Ok(axum::Json(KeysRemoved { removed }))
}

fn wire(key: KeyView) -> Key {
    let KeyLimits { scopes, vm_prefix, provider, max_vms, rate, expires } = key.limits;
    Key {
        id: key.id,
        name: key.name.to_string(),
        scopes: scopes.into(),
        vm_prefix: vm_prefix.map(|prefix| prefix.to_string()),
        provider: provider.map(|provider| provider.to_string()),
        max_vms: max_vms.map(std::num::NonZero::get),
        rate: rate.map(std::num::NonZero::get),
        expires,
        parent: key.parent,
        created: key.created,
    }
}
