//! A client of the wire that knows nothing but its frames.

use crate::{
    e2b::{Purpose, Tokens},
    tests::fixture::{Daemon, PATIENCE, Place},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use tokio::{net::TcpStream, time::timeout};

/// The envd of one sandbox.
#[derive(Clone)]
pub struct Envd {
    address: SocketAddr,
    sandbox: String,
    token: String,
    /// Named by `Authorization`.
    user: Option<String>,
}

/// A daemon with a running VM `box`.
pub async fn boxed(place: &Place) -> (Daemon, Envd) {
    let (daemon, address) = Daemon::on_a_port(place).await;
    let vm = daemon.boot("box").await;
    let token = Tokens::load(&place.state_dir()).unwrap().of(vm.id, Purpose::Access);
    (daemon, Envd { address, sandbox: "box".into(), token, user: None })
}

impl Envd {
    pub fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    pub fn of_user(&self, user: &str) -> Self {
        Self { user: Some(user.into()), ..self.clone() }
    }

    /// Shows no token: what it is let in by is in the request.
    pub fn without_token(&self) -> Self {
        Self { token: String::new(), ..self.clone() }
    }

    /// The query of a link to a file for the default user.
    pub fn signed(&self, operation: &str, path: &str) -> String {
        let digest = Sha256::digest(format!("{path}:{operation}::{}", self.token));
        let signature = STANDARD_NO_PAD.encode(digest).replace('+', "%2B").replace('/', "%2F");
        format!("/files?path={path}&signature=v1_{signature}")
    }

    /// Anything.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "it ends with the connection")]
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("e2b-sandbox-id", &self.sandbox)
            .header("e2b-sandbox-port", "49983");
        if !self.token.is_empty() {
            request = request.header("x-access-token", &self.token);
        }
        if let Some(user) = &self.user {
            let basic = STANDARD.encode(format!("{user}:"));
            request = request.header("authorization", format!("Basic {basic}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        timeout(PATIENCE, sender.send_request(request)).await.expect("an answer in time").unwrap()
    }

    /// A call of one message each way.
    pub async fn call(&self, method: &str, message: Value) -> (u16, Value) {
        let headers = [("content-type", "application/json"), ("connect-protocol-version", "1")];
        let response = self.send("POST", &format!("/{method}"), &headers, message.to_string()).await;
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&whole(response).await).unwrap())
    }

    /// One that succeeds.
    pub async fn done(&self, method: &str, message: Value) -> Value {
        let (status, answer) = self.call(method, message).await;
        assert_eq!(status, 200, "{method}: {answer}");
        answer
    }

    /// One that fails with this code.
    pub async fn refused(&self, method: &str, message: Value, code: &str) -> String {
        let (status, answer) = self.call(method, message).await;
        assert!(status >= 400 && answer["code"] == code, "{method}: {status} {answer} where {code} was due");
        answer["message"].as_str().unwrap().to_owned()
    }

    /// A call that is answered by a stream, from messages of the client.
    pub async fn stream_of(&self, method: &str, messages: &[Value], headers: &[(&str, &str)]) -> Frames {
        let body: Vec<u8> = messages.iter().flat_map(framed).collect();
        let headers = [&[("content-type", "application/connect+json")], headers].concat();
        let response = self.send("POST", &format!("/{method}"), &headers, body).await;
        assert_eq!(response.status(), 200, "a stream fails in its last frame");
        assert_eq!(response.headers()["content-type"], "application/connect+json");
        Frames { body: response.into_body(), buffer: BytesMut::new() }
    }

    pub async fn stream(&self, method: &str, message: Value) -> Frames {
        self.stream_of(method, &[message], &[]).await
    }

    /// Starts `bash -l -c SCRIPT` as the clients do.
    pub async fn bash(&self, script: &str, stdin: bool) -> (u32, Frames) {
        let process = json!({ "cmd": "/bin/bash", "args": ["-l", "-c", script] });
        let mut events =
            self.stream("process.Process/Start", json!({ "process": process, "stdin": stdin })).await;
        (events.started().await, events)
    }
}

pub async fn whole(response: Response<Incoming>) -> Bytes {
    timeout(PATIENCE, response.into_body().collect()).await.expect("a body in time").unwrap().to_bytes()
}

pub fn framed(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[0], &length[..], text.as_bytes()].concat()
}

/// The messages of a stream.
pub struct Frames {
    body: Incoming,
    buffer: BytesMut,
}

impl Frames {
    /// The next message, or how the stream ended: `{}` or `{"error":{..}}`.
    pub async fn next(&mut self) -> Result<Value, Value> {
        loop {
            if let Some((&[flags, a, b, c, d], rest)) = self.buffer.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if rest.len() >= length {
                    self.buffer.advance(5);
                    let message = serde_json::from_slice(&self.buffer.split_to(length)).unwrap();
                    return if flags == 2 { Err(message) } else { Ok(message) };
                }
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.expect("a frame in time");
            let frame = frame.expect("no end before the end").unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    pub async fn started(&mut self) -> u32 {
        let first = self.next().await.unwrap();
        u32::try_from(first["event"]["start"]["pid"].as_u64().unwrap()).unwrap()
    }

    /// Output of that kind until it is as long as `text`.
    pub async fn says(&mut self, kind: &str, text: &str) {
        let mut seen = Vec::new();
        while seen.len() < text.len() {
            let message = self.next().await.unwrap();
            let data = message["event"]["data"][kind].as_str();
            let data = STANDARD.decode(data.unwrap_or_else(|| panic!("{message}"))).unwrap();
            assert!(data.len() <= 32 * 1024, "a chunk of {} bytes", data.len());
            seen.extend(data);
        }
        assert!(seen == text.as_bytes(), "{:?}", String::from_utf8_lossy(&seen));
    }

    /// The process's end, and that of the stream.
    pub async fn ended(&mut self) -> Value {
        let last = self.next().await.unwrap();
        assert_eq!(self.next().await.unwrap_err(), json!({}));
        last["event"]["end"].clone()
    }

    /// That the stream ends by an error of this code.
    pub async fn failed(&mut self, code: &str) -> String {
        let end = self.next().await.unwrap_err();
        assert_eq!(end["error"]["code"], code, "{end}");
        end["error"]["message"].as_str().unwrap().to_owned()
    }
}

pub fn b64(text: &str) -> String {
    STANDARD.encode(text)
}
