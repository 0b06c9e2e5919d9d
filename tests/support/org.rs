//! The sample org of the tests, as a file for `apply`.

/// The secret of the service key that acts for every user.
pub const STUDIO: &str = "tg_test_studio_0000000000001";
/// The secret of the principal's key.
pub const ROBOT: &str = "tg_test_robot_00000000000001";
/// The secret of the key that is the first user.
pub const OWN: &str = "tg_test_own_0000000000000001";

/// What a user has of pool access (D12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All of it.
    Pool,
    /// Neither profile.
    None,
    /// The base product only.
    Base,
    /// The offer product only.
    Offer,
}

/// An org: image costs 1 credit or 0.5 Operations, video 100 credits or 2 Operations a second.
#[derive(Clone, Debug)]
pub struct Org {
    /// `[org]`, after id, contract and products.
    pub settings: String,
    /// Operations; `None` for no term.
    pub pool: Option<String>,
    /// Id, licences as (id, credits, more keys), access, more keys.
    pub users: Vec<User>,
    /// More keys of the offer profile.
    pub offer: String,
    /// The Shared Credits switch of the offer profile.
    pub shared: bool,
    /// More sections.
    pub extra: String,
    /// The version of the rate card.
    pub version: String,
}

#[derive(Clone, Debug)]
pub struct User {
    pub id: String,
    /// Id, credits, more keys.
    pub licences: Vec<(String, String, String)>,
    pub access: Access,
    /// More keys.
    pub more: String,
}

impl Org {
    pub fn new() -> Self {
        Self {
            settings: String::new(),
            pool: Some("1000".to_owned()),
            users: Vec::new(),
            offer: String::new(),
            shared: true,
            extra: String::new(),
            version: "2026-11".to_owned(),
        }
    }

    /// Adds lines to `[org]`.
    pub fn settings(mut self, lines: &str) -> Self {
        self.settings += lines;
        self.settings.push('\n');
        self
    }

    pub fn pool(mut self, operations: &str) -> Self {
        self.pool = Some(operations.to_owned());
        self
    }

    pub fn no_term(mut self) -> Self {
        self.pool = None;
        self
    }

    /// Adds a user with one licence, or none for no credits.
    pub fn user(self, id: &str, credits: &str, access: Access) -> Self {
        let licence = (format!("lic-{id}"), credits.to_owned(), String::new());
        let licences = if credits.is_empty() { vec![] } else { vec![licence] };
        self.stacked(id, licences, access)
    }

    /// Adds a user with these licences.
    pub fn stacked(
        mut self,
        id: &str,
        licences: Vec<(String, String, String)>,
        access: Access,
    ) -> Self {
        self.users.push(User { id: id.to_owned(), licences, access, more: String::new() });
        self
    }

    /// Adds lines to the last user.
    pub fn more(mut self, lines: &str) -> Self {
        let user = self.users.last_mut().unwrap();
        user.more += lines;
        user.more.push('\n');
        self
    }

    /// A user that is there already.
    pub fn change(mut self, id: &str, change: impl FnOnce(&mut User)) -> Self {
        change(self.users.iter_mut().find(|user| user.id == id).unwrap());
        self
    }

    /// Adds lines to the offer profile.
    pub fn offer(mut self, lines: &str) -> Self {
        self.offer += lines;
        self
    }

    /// Adds sections.
    pub fn extra(mut self, sections: &str) -> Self {
        self.extra += sections;
        self
    }

    pub fn toml(&self) -> String {
        let mut text = format!(
            "[org]\nid = \"acme\"\n{}{}products = [\"firefly-services\", \"cce-4\"]\n{}\n",
            if self.settings.contains("contract") { "" } else { "contract = \"etla\"\n" },
            "",
            self.settings
        );
        if let Some(pool) = &self.pool {
            text += &format!(
                "[[term]]\nid = \"t1\"\nstart = \"2026-01-01\"\nend = \"2030-01-01\"\n\
                 pool = \"{pool}\"\n"
            );
        }
        let mut plans: Vec<&str> =
            self.users.iter().flat_map(|user| user.licences.iter().map(|l| l.1.as_str())).collect();
        plans.sort_unstable();
        plans.dedup();
        for credits in plans {
            text += &format!("[[plan]]\nid = \"p{credits}\"\ncredits = \"{credits}\"\n");
        }
        for user in &self.users {
            let licences: Vec<String> = (user.licences.iter())
                .map(|(id, credits, more)| {
                    format!("{{ id = \"{id}\", plan = \"p{credits}\"{more} }}")
                })
                .collect();
            text += &format!(
                "[[user]]\nid = \"{}\"\nlicences = [{}]\n{}",
                user.id,
                licences.join(", "),
                user.more
            );
        }
        let members = |of: &[Access]| {
            let ids = self.users.iter().filter(|user| of.contains(&user.access));
            ids.map(|user| format!("\"{}\"", user.id)).collect::<Vec<_>>().join(", ")
        };
        text += &format!(
            "[[profile]]\nid = \"ffs\"\nproduct = \"firefly-services\"\nshared_credits = {}\n\
             users = [{}]\n{}\n",
            self.shared,
            members(&[Access::Pool, Access::Offer]),
            self.offer
        );
        text += &format!(
            "[[profile]]\nid = \"cce\"\nproduct = \"cce-4\"\nusers = [{}]\n",
            members(&[Access::Pool, Access::Base])
        );
        text += &format!(
            "[[rate_card]]\nversion = \"{}\"\noperations_per_credit = \"0.5\"\n{RATES}",
            self.version
        );
        text += &format!(
            "[[key]]\nid = \"studio\"\nkind = \"service\"\nacts_for = \"*\"\nsecret = \"{STUDIO}\"\n"
        );
        if !self.extra.contains("id = \"robot\"") {
            text += &format!(
                "[[key]]\nid = \"robot\"\nkind = \"principal\"\nprofile = \"ffs\"\nsecret = \"{ROBOT}\"\n"
            );
        }
        if let Some(user) = self.users.first() {
            text += &format!(
                "[[key]]\nid = \"own\"\nkind = \"user\"\nuser = \"{}\"\nsecret = \"{OWN}\"\n",
                user.id
            );
        }
        text + &self.extra
    }
}

const RATES: &str = r#"
[[rate_card.rate]]
feature = "image"
unit = "image"
credits = "1"
[[rate_card.rate]]
feature = "video"
when = { resolution = "1080p" }
unit = "second"
credits = "100"
operations = "2"
[[rate_card.rate]]
feature = "video"
when = { resolution = "720p" }
credits = "50"
operations = "1"
[[rate_card.rate]]
feature = "video"
when = { resolution = "720p", model = "fine" }
credits = "1/3"
[[rate_card.rate]]
feature = "recolor"
tier = "standard"
[[rate_card.rate]]
feature = "thumb"
credits = "1"
pool = false
[[rate_card.rate]]
feature = "chat"
meter = "in"
credits = "1/3"
[[rate_card.rate]]
feature = "chat"
meter = "out"
credits = "2/3"
"#;
