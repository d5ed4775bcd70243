/*
 * version.c
 *	  Versions of objects as text, such that they can be compared with others later (C1).
 */
#include "postgres.h"

#include "alert/rule.h"
#include "stage/mapping.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/uuid.h"

char *
mr_rule_version_text(const MrStaging *staging, const MrVersion *version)
{
	const MrMessage *message = version->message;
	Datum declared;
	bool isnull;
	Oid output;
	bool varlena;

	if (staging->plan->version == NULL)
		return psprintf(
			"%d %d " INT64_FORMAT " " INT64_FORMAT " %s", message->epoch, message->partition,
			message->position, message->time,
			DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&message->place))));
	declared = mr_version_compared(version, &isnull);
	if (isnull)
		return "";
	getTypeOutputInfo(staging->plan->version_type, &output, &varlena);
	return psprintf("=%s", OidOutputFunctionCall(output, declared));
}

static void
read_version(const MrStaging *staging, const char *written, MrVersion *version)
{
	memset(version, 0, sizeof(MrVersion));
	version->message = palloc0(sizeof(MrMessage));
	if (staging->plan->version == NULL)
	{
		MrMessage *message = version->message;
		char place[40];
		long long position;
		long long time;

		if (sscanf(written, "%d %d %lld %lld %39s", &message->epoch, &message->partition, &position,
				   &time, place) != 5)
			elog(ERROR, "cannot read the version \"%s\"", written);
		message->position = position;
		message->time = time;
		message->place = *DatumGetUUIDP(DirectFunctionCall1(uuid_in, CStringGetDatum(place)));
	}
	else if (written[0] == '\0')
		version->version_null = true;
	else
	{
		Oid input;
		Oid parameter;

		/* It has met the constraints of its domain, whose functions are not ours to call. */
		getTypeInputInfo(getBaseType(staging->plan->version_type), &input, &parameter);
		version->version = OidInputFunctionCall(input, pstrdup(written + 1), parameter, -1);
	}
}

bool
mr_rule_version_is_newer(const MrStaging *staging, const MrVersion *version, const char *noted,
						 bool deleted)
{
	MrVersion other;

	read_version(staging, noted, &other);
	other.deleted = deleted;
	return mr_version_compare(staging, version, &other) > 0;
}
