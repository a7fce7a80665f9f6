//! An AMQP broker instead of an IoT Hub: SASL, no tokens, addresses by template. The hub plays the broker: it takes
//! PLAIN and EXTERNAL too.

use std::time::Duration;

use gateway_core::{
    message::{Outcome, Settlement},
    settings::Upstream,
};
use hub::{
    HubConfig,
    domain::{Authentication, Identity, IfMatch, Registration},
};

use crate::{
    commands::enqueue,
    support::{Device, Verify, World, on_a_core},
};

fn world() -> World {
    World::with(Verify::Local, HubConfig { amqp_port: Some(0), ..HubConfig::default() }, |_| {})
}

async fn works(world: &World) {
    let upstream = world.upstream();
    let device = Device::open(&upstream, "d1");
    device.send(1, "a-0");
    assert_eq!(device.outcome().await, (1, Outcome::Accepted));
    device.open_commands(4).await;
    enqueue(world, "d1", "c1");
    device.link.settle(device.command().await.tag, Settlement::Accepted);
    device.send_all("b-", 50, 8).await;
    upstream.shutdown(Duration::from_secs(30)).await;
}

fn with_sasl_plain(tls: bool) {
    on_a_core(async move {
        let mut world = world();
        world.hub().add_device("d1").unwrap();
        let addresses = world.hub().addresses();
        world.use_broker("url: \"amqps://localhost\", saslPlain: {secretName: login}, caSecretName: hub-ca");
        // the configuration refuses a password without TLS; benchmarks and this test do not
        let Upstream::Amqp(broker) = &mut world.settings.upstream else { unreachable!() };
        broker.tls = tls;
        broker.port = if tls { addresses.amqps.port() } else { addresses.amqp.unwrap().port() };
        world.write_secret("login", "username", "device@sas.root.localhost\n");
        world.write_secret("login", "password", &world.policy_token());
        works(&world).await;
    });
}

#[test]
fn a_broker_takes_sasl_plain() {
    with_sasl_plain(true);
}

#[test]
fn a_broker_without_tls_is_reached_by_bare_tcp() {
    with_sasl_plain(false);
}

#[test]
fn a_broker_takes_a_client_certificate() {
    on_a_core(async {
        let mut world = world();
        world.hub().add_device("d1").unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["gateway".into()]).unwrap().self_signed(&key).unwrap();
        let port = world.hub().addresses().amqps.port();
        world.use_broker(&format!(
            "url: \"amqps://localhost:{port}\", clientCertificate: {{secretName: pair}}, caSecretName: hub-ca"
        ));
        world.write_secret("pair", "tls.crt", &certificate.pem());
        world.write_secret("pair", "tls.key", &key.serialize_pem());
        let mut registration = Registration::new(Identity::device("d1"));
        registration.authentication =
            Authentication::SelfSigned { primary: Some(thumbprint(certificate.der())), secondary: None };
        world.hub().domain().update_identity(registration, &IfMatch::Any).unwrap();
        works(&world).await;
    });
}

/// SHA-256, as the registry writes it.
fn thumbprint(der: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().concat()
}
