//! What can be read without a tool: consoles and snapshots of VMs.
//!
//! ```text
//! offshoot://vm/{vm}/console     the end of what the VM wrote to its console
//! offshoot://vm/{vm}/snapshots   the states of it that were kept, as JSON
//! ```

use crate::gathered::Gathered;
use futures::StreamExt;
use offshoot_api::{Client, ClientError, v1::PageQuery};
use offshoot_types::{ErrorCode, Failure, VmRef};
use rmcp::model::{Resource, ResourceContents, ResourceTemplate};

const SCHEME: &str = "offshoot://vm/";
/// VMs whose resources are listed; those of others are found by the templates.
const MAX_VMS: u32 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Console,
    Snapshots,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Console, Self::Snapshots];

    const fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Snapshots => "snapshots",
        }
    }

    const fn mime(self) -> &'static str {
        match self {
            Self::Console => "text/plain",
            Self::Snapshots => "application/json",
        }
    }

    const fn description(self) -> &'static str {
        match self {
            Self::Console => "The end of what the VM's kernel and agent wrote to its console",
            Self::Snapshots => "The states of the VM that were kept: parents before children",
        }
    }
}

pub fn templates() -> Vec<ResourceTemplate> {
    Kind::ALL
        .map(|kind| {
            ResourceTemplate::new(format!("{SCHEME}{{vm}}/{}", kind.name()), format!("vm-{}", kind.name()))
                .with_description(kind.description())
                .with_mime_type(kind.mime())
        })
        .into()
}

/// Those of the VMs there are.
pub async fn list(client: &Client) -> Result<Vec<Resource>, Failure> {
    let page = PageQuery { limit: Some(MAX_VMS), cursor: None };
    let list = client.vms_page(&page).await.map_err(ClientError::into_failure)?;
    let of = |vm: &offshoot_api::v1::Vm, kind: Kind| {
        Resource::new(format!("{SCHEME}{}/{}", vm.name, kind.name()), format!("{} {}", vm.name, kind.name()))
            .with_description(kind.description())
            .with_mime_type(kind.mime())
    };
    Ok(list.vms.iter().flat_map(|vm| Kind::ALL.map(|kind| of(vm, kind))).collect())
}

pub async fn read(client: &Client, uri: &str) -> Result<ResourceContents, Failure> {
    let (vm, kind) = find(uri)?;
    let text = match kind {
        Kind::Console => console(client, &vm).await,
        Kind::Snapshots => client
            .snapshots_of(&vm)
            .await
            .map(|list| serde_json::to_string_pretty(&list.snapshots).expect("wire types are plain data")),
    };
    let text = text.map_err(ClientError::into_failure)?;
    Ok(ResourceContents::text(text, uri).with_mime_type(kind.mime()))
}

async fn console(client: &Client, vm: &VmRef) -> Result<String, ClientError> {
    let mut gathered = Gathered::default();
    let mut stream = client.console(vm, false).await?;
    while let Some(part) = stream.next().await {
        gathered.push(&part?);
    }
    Ok(gathered.text())
}

fn find(uri: &str) -> Result<(VmRef, Kind), Failure> {
    let found = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).and_then(|(vm, name)| {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name)?;
        Some((vm.parse().ok()?, kind))
    });
    found.ok_or_else(|| {
        Failure::new(ErrorCode::NotFound, format!("there is no resource `{uri:.120}`"))
            .hint(format!("they are {SCHEME}VM/console and {SCHEME}VM/snapshots"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_found_by_what_their_templates_say() {
        let vm: VmRef = "web".parse().unwrap();
        assert_eq!(find("offshoot://vm/web/console").unwrap(), (vm.clone(), Kind::Console));
        assert_eq!(find("offshoot://vm/web/snapshots").unwrap(), (vm, Kind::Snapshots));
        for wrong in
            ["file:///etc/passwd", "offshoot://vm/web", "offshoot://vm/We b/console", "offshoot://vm/web/x"]
        {
            assert_eq!(find(wrong).unwrap_err().code, ErrorCode::NotFound, "{wrong}");
        }
        for (template, kind) in templates().iter().zip(Kind::ALL) {
            assert_eq!(find(&template.uri_template.replace("{vm}", "web")).unwrap().1, kind);
        }
    }
}
