//! What the filters of an HTTPRoute's rule do.

use std::sync::Arc;

use gateway_api::experimental::httproutes::{
    HttpRouteRulesFilters, HttpRouteRulesFiltersRequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPath, HttpRouteRulesFiltersRequestRedirectScheme as Scheme,
    HttpRouteRulesFiltersType as Filter, HttpRouteRulesFiltersUrlRewrite,
    HttpRouteRulesFiltersUrlRewritePath,
};
use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode};

use super::super::route::{self, modify_headers};
use super::super::{Invalid, fields};
use crate::store::route::{HeaderChanges, PathRewrite, Redirect};

/// What the filters of a rule say, all together.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) request_headers: HeaderChanges,
    pub(super) response_headers: HeaderChanges,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrites: bool,
    pub(super) host_rewrite: Option<HeaderValue>,
    pub(super) path_rewrite: Option<PathRewrite>,
}

impl Filters {
    /// Reads them.
    pub(super) fn read(field: &str, filters: &[HttpRouteRulesFilters]) -> Result<Self, Invalid> {
        let mut all = Self::default();
        for (index, filter) in filters.iter().enumerate() {
            let field = format!("{field}.filters[{index}]");
            match filter.r#type {
                Filter::RequestHeaderModifier => {
                    let it = present(
                        &field,
                        "requestHeaderModifier",
                        filter.request_header_modifier.as_ref(),
                    )?;
                    modify_headers!(
                        format!("{field}.requestHeaderModifier"),
                        it,
                        &mut all.request_headers
                    );
                }
                Filter::ResponseHeaderModifier => {
                    let it = present(
                        &field,
                        "responseHeaderModifier",
                        filter.response_header_modifier.as_ref(),
                    )?;
                    modify_headers!(
                        format!("{field}.responseHeaderModifier"),
                        it,
                        &mut all.response_headers
                    );
                }
                Filter::RequestRedirect => {
                    let it = present(&field, "requestRedirect", filter.request_redirect.as_ref())?;
                    all.redirect = Some(redirect(&format!("{field}.requestRedirect"), it)?);
                }
                Filter::UrlRewrite => {
                    let it = present(&field, "urlRewrite", filter.url_rewrite.as_ref())?;
                    all.rewrite(&format!("{field}.urlRewrite"), it)?;
                }
                ref other => return Err(route::unsupported(&field, other)),
            }
        }
        Ok(all)
    }

    fn rewrite(
        &mut self,
        field: &str,
        rewrite: &HttpRouteRulesFiltersUrlRewrite,
    ) -> Result<(), Invalid> {
        self.rewrites = true;
        if let Some(host) = &rewrite.hostname {
            let field = format!("{field}.hostname");
            fields::subdomain(&field, host)?;
            self.host_rewrite = Some(fields::header_value(field, host)?);
        }
        if let Some(HttpRouteRulesFiltersUrlRewritePath {
            replace_full_path,
            replace_prefix_match,
            ..
        }) = &rewrite.path
        {
            self.path_rewrite = path_rewrite(
                field,
                replace_full_path.as_deref(),
                replace_prefix_match.as_deref(),
            )?;
        }
        Ok(())
    }

    /// Whether a prefix is replaced, which needs one to be matched.
    pub(super) fn replaces_prefix(&self) -> bool {
        let redirect = self
            .redirect
            .as_ref()
            .and_then(|redirect| redirect.path.as_ref());
        [redirect, self.path_rewrite.as_ref()]
            .into_iter()
            .flatten()
            .any(|it| matches!(it, PathRewrite::Prefix(_)))
    }
}

fn present<'a, T>(field: &str, name: &str, value: Option<&'a T>) -> Result<&'a T, Invalid> {
    value.ok_or_else(|| {
        Invalid::new(
            format!("{field}.{name}"),
            "is missing: the filter's type needs it",
        )
    })
}

fn redirect(field: &str, it: &HttpRouteRulesFiltersRequestRedirect) -> Result<Redirect, Invalid> {
    let status = it.status_code.unwrap_or(302);
    let status = u16::try_from(status)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok())
        .filter(|code| matches!(code.as_u16(), 301 | 302 | 303 | 307 | 308))
        .ok_or_else(|| {
            Invalid::new(
                format!("{field}.statusCode"),
                format!("{status}: use 301, 302, 303, 307 or 308"),
            )
        })?;
    if let Some(host) = &it.hostname {
        fields::subdomain(&format!("{field}.hostname"), host)?;
    }
    let path = match &it.path {
        Some(HttpRouteRulesFiltersRequestRedirectPath {
            replace_full_path,
            replace_prefix_match,
            ..
        }) => path_rewrite(
            field,
            replace_full_path.as_deref(),
            replace_prefix_match.as_deref(),
        )?,
        None => None,
    };
    Ok(Redirect {
        scheme: it.scheme.as_ref().map(|scheme| match scheme {
            Scheme::Http => "http".into(),
            Scheme::Https => "https".into(),
        }),
        host: it.hostname.as_deref().map(Into::into),
        port: it
            .port
            .map(|port| fields::port(format!("{field}.port"), port.into()))
            .transpose()?,
        path,
        status,
    })
}

fn path_rewrite(
    field: &str,
    full: Option<&str>,
    prefix: Option<&str>,
) -> Result<Option<PathRewrite>, Invalid> {
    let valid = |path: &str| {
        // It goes into a request line, where the sidecar takes nothing that is no path.
        let parsed = path.parse::<PathAndQuery>();
        if parsed.is_ok_and(|it| it.as_str() == path && it.query().is_none()) {
            Ok(Arc::<str>::from(path))
        } else {
            Err(Invalid::new(
                format!("{field}.path"),
                format!("{path:?} is not a path: escape everything but visible ASCII"),
            ))
        }
    };
    match (full, prefix) {
        (Some(path), None) => {
            let path = if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            };
            valid(&path).map(|path| Some(PathRewrite::Full(path)))
        }
        (None, Some(path)) => {
            let path = if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            };
            valid(&path).map(|path| Some(PathRewrite::Prefix(path)))
        }
        _ => Err(Invalid::new(
            format!("{field}.path"),
            "needs one of replaceFullPath and replacePrefixMatch",
        )),
    }
}
