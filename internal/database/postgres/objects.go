package postgres

import (
	"strings"

	"github.com/sluice-cd/sluice/internal/database"
)

// perInstance are settings that say where and how this server runs, and those that a quarantine overrides. They are not
// compared. Settings of the session that reads are hidden by its own and cannot be compared either.
func perInstance() []string {
	return []string{
		"data_directory", "hba_file", "ident_file", "config_file", "external_pid_file", "port", "listen_addresses", "unix_socket_directories",
		"cluster_name", "event_source", "primary_conninfo", "primary_slot_name", "restore_command", "archive_mode", "archive_command", "archive_library",
		"archive_cleanup_command", "recovery_end_command", "max_logical_replication_workers", "shared_preload_libraries", "session_preload_libraries",
		"local_preload_libraries", "cron.launch_active_jobs", "synchronous_standby_names", "ssl_cert_file", "ssl_key_file", "stats_temp_directory",
	}
}

// clusterQueries list what belongs to no database.
func clusterQueries(version int) []objectQuery {
	provider := `CASE d.datlocprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' ELSE d.datlocprovider::text END, 'collation version', d.datcollversion`
	if version < 150000 {
		provider = `'libc'`
	}
	return []objectQuery{
		{"role", `
			SELECT r.rolname::text, jsonb_build_object('superuser', r.rolsuper, 'inherit', r.rolinherit, 'create role', r.rolcreaterole,
			       'create database', r.rolcreatedb, 'login', r.rolcanlogin, 'replication', r.rolreplication, 'bypass row security', r.rolbypassrls,
			       'connection limit', nullif(r.rolconnlimit, -1), 'valid until', r.rolvaliduntil,
			       'member of', (SELECT string_agg(pg_get_userbyid(m.roleid) || CASE WHEN m.admin_option THEN ' with admin option' ELSE '' END, ', '
			                     ORDER BY pg_get_userbyid(m.roleid)) FROM pg_auth_members m WHERE m.member = r.oid))
			FROM pg_roles r WHERE r.rolname !~ '^pg_'`},
		{"database", `
			SELECT d.datname::text, jsonb_build_object('owner', pg_get_userbyid(d.datdba), 'encoding', pg_encoding_to_char(d.encoding), 'collate',
			d.datcollate,
			       'ctype', d.datctype, 'connection limit', nullif(d.datconnlimit, -1), 'template', d.datistemplate, 'allows connections', d.datallowconn,
			       'tablespace', t.spcname, 'acl', ` + aclText("d.datacl", "d", "d.datdba") + `, 'provider', ` + provider + `)
			FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace`},
		{"tablespace", `
			SELECT spcname::text, jsonb_build_object('owner', pg_get_userbyid(spcowner), 'acl', ` + aclText("spcacl", "t", "spcowner") + `,
			       'options', array_to_string(spcoptions, ', '))
			FROM pg_tablespace WHERE spcname !~ '^pg_'`},
		{database.KindSetting, `
			SELECT name, jsonb_build_object('value', CASE WHEN name ~ '(password|passphrase|secret)' THEN '…' ELSE setting END)
			FROM pg_settings WHERE name = 'data_checksums' OR source = 'configuration file' AND name !~ '^log_'
			  AND name NOT IN ('` + strings.Join(perInstance(), "', '") + `')`},
		{"settings of", `
			SELECT coalesce('database ' || d.datname, '') || CASE WHEN s.setdatabase <> 0 AND s.setrole <> 0 THEN ', ' ELSE '' END || coalesce('role '
			|| pg_get_userbyid(nullif(s.setrole, 0)), ''),
			       jsonb_build_object('values', (SELECT string_agg(x, ', ' ORDER BY x COLLATE "C") FROM unnest(s.setconfig) AS x))
			FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase`},
		{database.KindReplicationSlot, `
			SELECT slot_name::text, jsonb_build_object('type', slot_type, 'plugin', plugin::text, 'database', database::text)
			FROM pg_replication_slots WHERE NOT temporary`},
		{database.KindPreparedTransaction, `SELECT gid, jsonb_build_object('owner', owner::text, 'database', database::text) FROM pg_prepared_xacts`},
	}
}

// databaseQueries list what belongs to the database of the session.
func databaseQueries(version int) []objectQuery {
	return append(append(relationQueries(version), codeQueries()...), otherQueries(version)...)
}

// relationQueries list relations' definitions, and what hangs on them.
func relationQueries(version int) []objectQuery {
	nulls := ""
	if version >= 150000 {
		nulls = `, 'nulls not distinct', nullif(i.indnullsnotdistinct, false)`
	}
	return []objectQuery{
		{"schema", `SELECT n.nspname::text, jsonb_build_object('owner', pg_get_userbyid(n.nspowner), 'acl', ` + aclText("n.nspacl", "n", "n.nspowner") + `)
			FROM pg_namespace n WHERE ` + mine + notOfExtension("pg_namespace", "n.oid")},
		{"", `
			SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned table' WHEN 'm' THEN 'materialised view' WHEN 'v' THEN 'view'
			ELSE 'foreign table' END,
			       n.nspname || '.' || c.relname, jsonb_build_object(
			       'owner', pg_get_userbyid(c.relowner), 'acl', ` + aclText("c.relacl", "r", "c.relowner") + `,
			       'persistence', c.relpersistence::text, 'row security', nullif(c.relrowsecurity, false), 'forced row security', nullif(c.relforcerowsecurity,
			       false),
			       'replica identity', nullif(c.relreplident::text, 'd'), 'tablespace', (SELECT spcname FROM pg_tablespace t WHERE t.oid = c.reltablespace),
			       'options', (SELECT string_agg(x, ', ' ORDER BY x COLLATE "C") FROM unnest(c.reloptions) AS x),
			       'access method', (SELECT nullif(a.amname, 'heap') FROM pg_am a WHERE a.oid = c.relam),
			       'partition key', CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END, 'partition', pg_get_expr(c.relpartbound, c.oid),
			       'parents', (SELECT string_agg(h.inhparent::regclass::text, ', ' ORDER BY h.inhseqno) FROM pg_inherits h WHERE h.inhrelid = c.oid),
			       'definition', CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END, 'populated',
			       CASE WHEN c.relkind = 'm' THEN c.relispopulated END,
			       'server', (SELECT s.srvname FROM pg_foreign_table f JOIN pg_foreign_server s ON s.oid = f.ftserver WHERE f.ftrelid = c.oid),
			       'comment', obj_description(c.oid, 'pg_class'))
			       || coalesce((SELECT jsonb_object_agg('column ' || a.attname, x.text) FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid
			       AND d.adnum = a.attnum
			                    JOIN pg_type t ON t.oid = a.atttypid, LATERAL (SELECT nullif(concat_ws(' ',
			                        CASE WHEN c.relkind NOT IN ('r', 'm') THEN format_type(a.atttypid, a.atttypmod) END,
			                        CASE WHEN a.attcollation <> t.typcollation THEN 'collate ' || a.attcollation::regcollation END,
			                        CASE WHEN a.attnotnull THEN 'not null' END,
			                        CASE a.attidentity WHEN 'a' THEN 'generated always as identity' WHEN 'd' THEN 'generated by default as identity' END,
			                        CASE WHEN a.attgenerated <> '' THEN 'generated always as (' || pg_get_expr(d.adbin, d.adrelid) || ')'
			                             WHEN d.adbin IS NOT NULL THEN 'default ' || pg_get_expr(d.adbin, d.adrelid) END,
			                        CASE WHEN a.attacl IS NOT NULL THEN 'acl ' || a.attacl::text END,
			                        'comment ' || col_description(c.oid, a.attnum)), '') AS text) AS x
			                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND x.text IS NOT NULL), '{}')
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f') AND c.relpersistence <> 't' AND ` + mine + notOfExtension("pg_class", "c.oid")},
		{"index", `
			SELECT n.nspname || '.' || x.relname, jsonb_build_object('definition', pg_get_indexdef(i.indexrelid), 'owner', pg_get_userbyid(x.relowner),
			       'unique', i.indisunique, 'primary', i.indisprimary, 'valid', i.indisvalid, 'ready', i.indisready, 'live', i.indislive, 'immediate',
			       i.indimmediate,
			       'replica identity', nullif(i.indisreplident, false),
			       'tablespace', (SELECT spcname FROM pg_tablespace t WHERE t.oid = x.reltablespace)` + nulls + `)
			FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = x.relnamespace
			WHERE c.relpersistence <> 't' AND ` + mine + notOfExtension("pg_class", "c.oid")},
		{"constraint", `
			SELECT n.nspname || '.' || coalesce(c.relname, t.typname) || '.'
			|| k.conname, jsonb_build_object('definition', pg_get_constraintdef(k.oid), 'validated', k.convalidated,
			       'local', k.conislocal, 'disabled triggers', (SELECT string_agg(DISTINCT g.tgenabled::text, '') FROM pg_trigger g
			                                                   WHERE g.tgconstraint = k.oid AND g.tgisinternal AND g.tgenabled <> 'O'))
			FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace LEFT JOIN pg_class c ON c.oid = k.conrelid LEFT
			JOIN pg_type t ON t.oid = k.contypid
			WHERE k.contype NOT IN ('n', 't') AND coalesce(c.relpersistence, 'p') <> 't' AND ` + mine + notOfExtension("pg_constraint", "k.oid")},
		{"trigger", `
			SELECT n.nspname || '.' || c.relname || '.' || g.tgname, jsonb_build_object('definition', pg_get_triggerdef(g.oid), 'enabled', g.tgenabled::text)
			FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE NOT g.tgisinternal AND c.relpersistence <> 't' AND ` + mine},
		{"rule", `
			SELECT n.nspname || '.' || c.relname || '.' || r.rulename, jsonb_build_object('definition', pg_get_ruledef(r.oid), 'enabled', r.ev_enabled::text)
			FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.rulename <> '_RETURN' AND ` + mine},
		{"policy", `
			SELECT n.nspname || '.' || c.relname || '.' || p.polname, jsonb_build_object('command', p.polcmd::text, 'permissive', p.polpermissive,
			       'roles', (SELECT string_agg(coalesce(pg_get_userbyid(nullif(r, 0)), 'public'), ', ' ORDER BY r) FROM unnest(p.polroles) AS r),
			       'using', pg_get_expr(p.polqual, p.polrelid), 'with check', pg_get_expr(p.polwithcheck, p.polrelid))
			FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ` + mine},
		{"statistics", `
			SELECT n.nspname || '.' || s.stxname, jsonb_build_object('definition', pg_get_statisticsobjdef(s.oid), 'owner', pg_get_userbyid(s.stxowner))
			FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE ` + mine},
	}
}

// codeQueries list functions and types.
func codeQueries() []objectQuery {
	return []objectQuery{
		{"function", `
			SELECT n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
			       jsonb_build_object('definition', CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END, 'owner', pg_get_userbyid(p.proowner),
			       'acl', ` + aclText("p.proacl", "f", "p.proowner") + `, 'result', pg_get_function_result(p.oid),
			       'aggregate', (SELECT concat_ws(' ', a.aggkind, a.aggtransfn::regprocedure, a.aggfinalfn::regproc, a.aggcombinefn::regproc,
			       a.aggtranstype::regtype, a.agginitval)
			                     FROM pg_aggregate a WHERE a.aggfnoid = p.oid))
			FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE ` + mine + notOfExtension("pg_proc", "p.oid")},
		{"type", `
			SELECT n.nspname || '.' || t.typname, jsonb_build_object('kind', t.typtype::text,
			       'owner', pg_get_userbyid(t.typowner), 'acl', ` + aclText("t.typacl", "T", "t.typowner") + `,
			       'labels', (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
			       'base', CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END, 'not null', nullif(t.typnotnull, false), 'default',
			       t.typdefault,
			       'collation', CASE WHEN t.typtype = 'd' AND t.typcollation <> 0 THEN t.typcollation::regcollation::text END,
			       'subtype', (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid),
			       'attributes', (SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
			                      FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped))
			FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
			WHERE t.typtype NOT IN ('p', 'm') AND coalesce(c.relkind, 'c') = 'c'
			  AND NOT (t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc) AND ` +
			mine + notOfExtension("pg_type", "t.oid")},
		{"event trigger", `
			SELECT e.evtname::text, jsonb_build_object('event', e.evtevent, 'owner', pg_get_userbyid(e.evtowner), 'function', e.evtfoid::regprocedure::text,
			'enabled', e.evtenabled::text,
			       'tags', array_to_string(e.evttags, ', ')) FROM pg_event_trigger e WHERE true` + notOfExtension("pg_event_trigger", "e.oid")},
	}
}

// otherQueries list what is left. Kinds that are rare are compared by existence, under the name the server identifies
// them by.
func otherQueries(version int) []objectQuery {
	locale := "c.colliculocale"
	switch {
	case version >= 170000:
		locale = "c.colllocale"
	case version < 150000:
		locale = "NULL::text"
	}
	return []objectQuery{
		{"extension", `
			SELECT e.extname::text, jsonb_build_object('version', e.extversion, 'schema', e.extnamespace::regnamespace::text,
			       'owner', pg_get_userbyid(e.extowner)) FROM pg_extension e`},
		{"collation", `
			SELECT n.nspname || '.' || c.collname, jsonb_build_object('provider', c.collprovider::text, 'deterministic', c.collisdeterministic, 'collate',
			c.collcollate,
			       'ctype', c.collctype, 'locale', ` + locale + `, 'version', c.collversion)
			FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
			WHERE c.collprovider <> 'd' AND c.collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))
			  AND (c.oid >= 16384 OR EXISTS (SELECT FROM pg_attribute a WHERE a.attcollation = c.oid AND a.attrelid >= 16384))`},
		{"publication", `
			SELECT p.pubname::text, jsonb_build_object('owner', pg_get_userbyid(p.pubowner), 'all tables', p.puballtables, 'insert', p.pubinsert, 'update',
			p.pubupdate,
			       'delete', p.pubdelete, 'truncate', p.pubtruncate, 'by root', p.pubviaroot,
			       'tables', (SELECT string_agg(r.prrelid::regclass::text, ', ' ORDER BY r.prrelid::regclass::text) FROM pg_publication_rel r
			       WHERE r.prpubid = p.oid))
			FROM pg_publication p`},
		{"subscription", `
			SELECT s.subname::text, jsonb_build_object('owner', pg_get_userbyid(s.subowner), 'enabled', s.subenabled, 'slot', s.subslotname::text,
			       'publications', array_to_string(s.subpublications, ', '))
			FROM pg_subscription s WHERE s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())`},
		{"foreign server", `
			SELECT s.srvname::text, jsonb_build_object('owner', pg_get_userbyid(s.srvowner), 'wrapper', w.fdwname::text,
			       'acl', ` + aclText("s.srvacl", "S", "s.srvowner") + `)
			FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw`},
		{"default privileges", `
			SELECT pg_get_userbyid(d.defaclrole) || coalesce(' in ' || n.nspname, '') || ' for ' || d.defaclobjtype::text, jsonb_build_object('acl',
			       (SELECT string_agg(x::text, ' ' ORDER BY x::text COLLATE "C") FROM unnest(d.defaclacl) AS x))
			FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace`},
		{"", `
			SELECT i.type, i.identity, '{}'::jsonb FROM (
			      SELECT 'pg_cast'::regclass AS class, oid FROM pg_cast UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator
			      UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_opfamily
			      UNION ALL SELECT 'pg_conversion'::regclass, oid FROM pg_conversion UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_language
			      UNION ALL SELECT 'pg_am'::regclass, oid FROM pg_am UNION ALL SELECT 'pg_transform'::regclass, oid FROM pg_transform
			      UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_ts_config UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict
			      UNION ALL SELECT 'pg_ts_parser'::regclass, oid FROM pg_ts_parser UNION ALL SELECT 'pg_ts_template'::regclass, oid FROM pg_ts_template
			      UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_foreign_data_wrapper UNION ALL SELECT 'pg_user_mapping'::regclass, umid
			      FROM pg_user_mappings) AS o,
			      LATERAL pg_identify_object(o.class, o.oid, 0) AS i
			WHERE o.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = o.class AND e.objid = o.oid AND e.deptype = 'e')`},
	}
}
