//! What is in deploy/, as far as that can be tried without containers.

use std::collections::BTreeMap;

use tollgate::config;
use yaml_rust2::{Yaml, YamlLoader};

use crate::run;
use crate::support::redis::RedisServer;
use crate::support::world::tollgate;

fn read(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A value of a service, which it may have from what it is merged with.
fn of<'a>(service: &'a Yaml, key: &str) -> &'a Yaml {
    if service[key].is_badvalue() { &service["<<"][key] } else { &service[key] }
}

fn words(list: &Yaml) -> Vec<&str> {
    list.as_vec().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Variables of the environment, with a value for each `${…}`.
fn environment(service: &Yaml) -> BTreeMap<String, String> {
    let entries = of(service, "environment").as_hash().unwrap().iter();
    let entry = |(name, value): (&Yaml, &Yaml)| {
        let (mut text, mut filled) = (value.as_str().unwrap(), String::new());
        while let Some((before, rest)) = text.split_once("${") {
            let (variable, behind) = rest.split_once('}').unwrap();
            assert!(variable.contains(":?"), "{variable} may be forgotten");
            filled += before;
            filled += "0123456789abcdef0123456789abcdef";
            text = behind;
        }
        (name.as_str().unwrap().to_owned(), filled + text)
    };
    entries.map(entry).collect()
}

#[test]
fn the_example_of_several_gateways_is_what_the_program_takes() {
    let compose = YamlLoader::load_from_str(&read("deploy/compose.yaml")).unwrap().remove(0);
    let services = compose["services"].as_hash().unwrap();
    let (mut gateways, mut volumes) = (0, Vec::new());
    for (name, service) in services {
        let name = name.as_str().unwrap();
        for volume in of(service, "volumes").as_vec().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            match source.strip_prefix("./") {
                Some(file) => assert!(!read(&format!("deploy/{file}")).is_empty()),
                None => {
                    assert!(!compose["volumes"].as_hash().unwrap().is_empty());
                    let declared = compose["volumes"].as_hash().unwrap();
                    assert!(declared.contains_key(&Yaml::String(source.to_owned())), "{source}");
                    volumes.push(source.to_owned());
                }
            }
        }
        if of(service, "image").as_str() != Some("tollgate") {
            continue;
        }
        let command = words(of(service, "command"));
        let ran = run(&[&command[..], &["--help"]].concat());
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        if command[0] == "serve" {
            gateways += 1;
            let file = format!("{}/deploy/tollgate.toml", env!("CARGO_MANIFEST_DIR"));
            let mut check = tollgate();
            check.args(["check", "-c", &file]).env_clear().envs(environment(service));
            let output = check.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(output.stderr.is_empty(), "{output:?}");
            assert!(!of(service, "depends_on")["redis"].is_badvalue());
        }
    }
    // Each has what is its own.
    assert_eq!(gateways, 3);
    let count = volumes.len();
    volumes.sort();
    volumes.dedup();
    assert_eq!((volumes.len(), count), (5, 5));
    // What does not exist would be seen.
    let ran = run(&["serve", "-c", "a", "--no-such-option", "--help"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    // The routes lead to a service that is there.
    let loaded = config::load(
        Some(format!("{}/deploy/tollgate.toml", env!("CARGO_MANIFEST_DIR")).as_ref()),
        std::iter::empty(),
    );
    assert!(loaded.is_ok());
    assert!(read("deploy/tollgate.toml").contains("http://backend:9100"));
    assert!(services.contains_key(&Yaml::String("backend".to_owned())));
    // A real server takes Redis' options.
    let redis = &compose["services"]["redis"];
    let mut words = words(of(redis, "command"));
    assert_eq!(words.remove(0), "redis-server");
    assert!(words.windows(2).any(|pair| pair == ["--maxmemory-policy", "noeviction"]));
    assert!(words.windows(2).any(|pair| pair == ["--appendonly", "yes"]));
    // The tests' own look at it has no password.
    let password = words.iter().position(|word| *word == "--requirepass").unwrap();
    words.drain(password..password + 2);
    RedisServer::start_with(&words);
    // The image is built of what there is.
    let image = read("deploy/Dockerfile");
    assert!(image.contains("cargo build --release --locked --bin tollgate"));
}
