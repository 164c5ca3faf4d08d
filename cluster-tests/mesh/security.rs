//! Who is let in.

use std::{fs, path::Path, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::harness::{Lab, Node, formed, lost, new_token, stays, took};

/// How long strangers must stay outside.
const SPAN: Duration = Duration::from_secs(5);

/// Watches that `strangers` and `friends` know nothing of each other, and that the strangers live.
async fn stay_apart(friends: &[&Node], strangers: &[&Node]) {
    stays("strangers stay outside", SPAN, async || {
        let mut apart = true;
        for friend in friends {
            apart &= friend.sees().await.len() == friends.len();
        }
        for stranger in strangers {
            apart &= stranger.sees().await.len() == 1;
        }
        apart
    })
    .await;
}

#[tokio::test]
async fn a_wrong_token_stays_outside() {
    let Some(lab) = Lab::open(201) else { return };
    let mut nodes = lab.nodes(4);
    nodes[2].token = Some(new_token());
    nodes[3].tell(&["--mesh-cluster", "other"]);
    for node in &mut nodes {
        node.start().await;
    }
    let [first, second, wrong, other] = &nodes[..] else { unreachable!() };
    formed(&[first, second]).await;
    took("the strangers to see themselves", async || wrong.sees().await.len() == 1 && other.sees().await.len() == 1)
        .await;
    stay_apart(&[first, second], &[wrong, other]).await;
    println!("a wrong token and another cluster's name stayed outside for {SPAN:?}");
}

/// An authority that signs nodes' certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes a node's files into `folder`; the flags that name them.
    fn sign(&self, identity: &str, folder: &Path) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        fs::create_dir_all(folder).unwrap();
        let write = |name: &str, text: String| {
            fs::write(folder.join(name), text).unwrap();
            folder.join(name).display().to_string()
        };
        let files = [write("ca", self.pem.clone()), write("cert", leaf.pem()), write("key", key.serialize_pem())];
        ["--mesh-ca", "--mesh-cert", "--mesh-key"]
            .iter()
            .zip(files)
            .flat_map(|(flag, file)| [(*flag).to_owned(), file])
            .collect()
    }
}

#[tokio::test]
async fn a_foreign_certificate_stays_outside() {
    let Some(lab) = Lab::open(202) else { return };
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut nodes = lab.nodes(5);
    let papers = [
        (&ours, "smg://smg/n0"),
        (&ours, "smg://smg/n1"),
        (&theirs, "smg://smg/n2"),
        // The right authority, for another cluster; and for another node.
        (&ours, "smg://other/n3"),
        (&ours, "smg://smg/n1"),
    ];
    for (node, (authority, identity)) in nodes.iter_mut().zip(papers) {
        node.token = None;
        node.flags.extend(authority.sign(identity, &lab.data().join("papers").join(&node.name)));
        node.launch();
    }
    // Those whose papers do not fit them may refuse to start, but must not get in.
    for node in &mut nodes[..3] {
        node.answers().await;
    }
    let [first, second, foreign, ..] = &nodes[..] else { unreachable!() };
    formed(&[first, second]).await;
    stay_apart(&[first, second], &[foreign]).await;
    println!("foreign, misplaced and borrowed certificates stayed outside for {SPAN:?}");
}

/// Two secrets are accepted while one replaces the other, and nobody is lost on the way.
#[tokio::test]
async fn a_token_is_replaced_node_by_node() {
    let Some(lab) = Lab::open(203) else { return };
    let (old, new) = (lab.token.clone(), new_token());
    let mut nodes = lab.nodes(2);
    nodes.iter_mut().for_each(|node| node.tell(&["--mesh-tokens-accepted", &new]));
    for node in &mut nodes {
        node.start().await;
    }
    formed(&[&nodes[0], &nodes[1]]).await;
    for index in 0..2 {
        nodes[index].stop().await;
        let other = &nodes[1 - index];
        lost(&[other], &format!("n{index}")).await;
        nodes[index].token = Some(new.clone());
        nodes[index].flags = vec!["--mesh-tokens-accepted".to_owned(), old.clone()];
        nodes[index].start().await;
        println!("node {index} with the new token: full views in {:?}", formed(&[&nodes[0], &nodes[1]]).await);
    }
}
