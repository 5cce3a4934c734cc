//! API keys.

use super::{Client, ClientError};
use crate::v1::{CreateKey, KeyCreated, KeyList, KeysRemoved};
use http::Method;
use offshoot_types::KeyId;

impl Client {
    /// Makes a key; the answer is the only place where its secret is.
    pub async fn create_key(&self, request: &CreateKey) -> Result<KeyCreated, ClientError> {
        self.json(Method::POST, "/v1/keys", Some(request)).await
    }

    pub async fn keys(&self) -> Result<KeyList, ClientError> {
        self.get("/v1/keys").await
    }

    pub async fn remove_key(&self, key: KeyId) -> Result<KeysRemoved, ClientError> {
        self.json(Method::DELETE, &format!("/v1/keys/{key}"), None::<&()>).await
    }
}
