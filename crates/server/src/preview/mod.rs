//! Programs that listen inside a VM, over HTTP.
//!
//! ```text
//! by path   /v1/vms/{vm}/ports/{port}/...      an API key, or the socket's owner        (http/ports.rs)
//! by host   {port}-{vm}.anything               a key, or a browser's cookie: admit      (e2b/route.rs)
//!                                              a VM's token, as E2B has it              (e2b/access.rs)
//!    all:   forward --dress--> one TCP connection into the VM for each request, upgrades included
//!
//! link (POST /v1/vms/{vm}/previews) --visited--> cookie of that host alone --admit--> Actor that made the link
//! ```
//! A program is hostile, and so is what it makes a browser do. It gets neither key, token nor cookie of ours; what it answers
//! sets no cookie for other hosts; a browser's cookie is good for one port of one VM under one host name, and for requests
//! that come from there. Connections belong to one state of the VM and end with it.

mod admit;
mod cookies;
mod dress;
mod forward;
mod headers;
mod origin;
mod ticket;

pub use admit::{Admission, PARAMETER, admit, is_visit};
pub use dress::{Dress, Front};
pub use forward::{NotForwarded, Way, forward};
pub use headers::key;
pub use origin::Origin;
pub use ticket::{SESSION_HOLDS, link};
